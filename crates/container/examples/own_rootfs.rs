//! Runs a command over two directories. Needs root, crun, and the files of the README's first
//! session.

// A program prints.
#![allow(clippy::print_stdout)]

use container::{Output, Overlay, Runtime, Supervision, Template, in_private_mount_namespace, run_in};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let template = Template::builder(["cat", "/greeting"]).build()?;
    for dir in ["run/upper", "run/work", "run/merged"] {
        std::fs::create_dir_all(dir)?;
    }
    let finished = in_private_mount_namespace(|| {
        let lowers = ["layers/greeting/fs", "base/fs"]; // topmost first
        let mounted = Overlay::new(lowers).writable("run/upper", "run/work").mount("run/merged")?;
        let streams = Supervision::new().stdout(Output::Inherit).stderr(Output::Inherit);
        let finished = run_in(mounted.path(), &template, &Runtime::new("crun"), streams)?;
        mounted.unmount()?;
        Ok::<_, container::Error>(finished)
    })??;
    println!("{:?}", finished.status);
    std::fs::remove_dir_all("run")?; // with the upper, which now has what the command wrote
    Ok(())
}
