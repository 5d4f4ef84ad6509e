//! Lists the layers of a store, and reads a stack of them without mounting it. Works on the files
//! of the README's first session.

// A program prints.
#![allow(clippy::print_stdout)]

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut trees = Vec::new();
    for found in layer::Store::open("layers")?.scan()?.with_meta() {
        let (layer, meta) = found?;
        let path = layer.path().display();
        match meta {
            Ok(meta) => println!("{path}: exit status {}, sidecars {:?}", meta.exit_status, layer.sidecars()?),
            Err(error) => println!("{path}: {error}"), // the other layers follow
        }
        trees.push(layer.fs());
    }
    trees.push("base/fs".into());
    let stack = layer::Stack::new(&trees, layer::XattrNamespace::Trusted)?;
    let greeting = stack.resolve("/greeting")?; // follows links, as a command does
    println!("/greeting is in {}", trees[greeting.layer].display());
    layer::merge(&trees, "merged")?; // the same stack as one directory of hard links
    Ok(())
}
