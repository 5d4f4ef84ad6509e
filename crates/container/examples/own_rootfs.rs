//! Runs a command in a root file system of your own: `own_rootfs ROOTFS COMMAND [ARGUMENT]...`, as
//! root.
//!
//! The overlay keeps what the command writes in a temporary directory, which must not lie in
//! ROOTFS. The program removes it at the end.

use std::error::Error;
use std::path::Path;
use std::process::ExitCode;

use container::advanced::copy_root_attributes;
use container::{
    Bundle, ContainerId, Invocation, Output, Overlay, Rootfs, Runtime, Status, Template, in_private_mount_namespace,
};

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let lower = args.next().ok_or("usage: own_rootfs ROOTFS COMMAND [ARGUMENT]...")?;
    let template = Template::builder(args).build()?;
    let scratch = tempfile::tempdir()?;
    let [empty, upper, work, merged] = ["empty", "upper", "work", "merged"].map(|name| scratch.path().join(name));
    for dir in [&empty, &upper, &work, &merged] {
        std::fs::create_dir(dir)?;
    }
    // The command sees the root of the upper as its `/`.
    copy_root_attributes(Path::new(&lower), &upper)?;

    let finished = in_private_mount_namespace(|| {
        // An overlay has at least two lowers.
        let mounted = Overlay::new([Path::new(&lower), &empty]).writable(upper, work).mount(merged)?;
        Rootfs::open(mounted.path())?.mount_points(&template)?;
        let bundle = Bundle::create(scratch.path(), &template.instantiate(mounted.path())?)?;
        let id = ContainerId::random("example")?;
        let invocation = Invocation::new(&bundle, &id).stdout(Output::Inherit).stderr(Output::Inherit);
        let finished = Runtime::default().run(invocation)?;
        mounted.unmount()?;
        Ok::<_, container::Error>(finished)
    })??;
    match finished.status {
        Status::Exited(code) => Ok(ExitCode::from(code as u8)),
        other => Err(format!("the command did not exit: {other:?}").into()),
    }
}
