//! Runs a command over a base and a layer, and captures what it wrote as the next layer. Needs root
//! and the files of the README's first session.

use container::{Output, Template};
use layer::{Base, Layer, Store};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let base = Base::open("base")?;
    let layers = [Layer::open("layers/greeting")?]; // topmost first
    let template = Template::builder(["sh", "-c", "sed s/hello/goodbye/ /greeting >/farewell"]).build()?;
    let options = runner::Options::new()
        .scratch(".") // on the file system of the layers, so that a rename moves the upper
        .stderr(Output::Inherit)
        .prep_upper(|upper, _lowers| Ok(std::fs::write(upper.join("seed"), "from the caller")?));
    let report = runner::run(&base, &layers, &template, options)?;
    if !report.status.success() {
        return Err(format!("the command failed: {:?}", report.status).into()); // the upper is deleted
    }
    report.publish(&Store::open("layers")?, "farewell", |new| Ok(new.layer.write_sidecar("package", "farewell")?))?;
    Ok(())
}
