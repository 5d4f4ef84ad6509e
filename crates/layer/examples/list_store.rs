//! Lists the layers of a store, and reads a stack of them without mounting it. Works on the files of
//! the README's first session.

// A program prints.
#![allow(clippy::print_stdout)]

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut trees = Vec::new();
    for layer in layer::scan("layers")? {
        let layer = layer?;
        let Some(meta) = layer.meta()? else { continue }; // the layer is not complete
        println!("{}: exit status {}, sidecars {:?}", layer.path().display(), meta.exit_status, layer.sidecars()?);
        trees.push(layer.fs());
    }
    trees.push("base/fs".into());
    let found = layer::lookup(&trees, "/greeting", layer::XattrNamespace::Trusted)?;
    if let Some(origin) = found.supplier() {
        println!("/greeting is in {}", trees[origin.layer].display());
    }
    layer::merge(&trees, "merged")?; // the same stack as one directory of hard links
    Ok(())
}
