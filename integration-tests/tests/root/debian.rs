//! Real input: builds and runs a program over layers of Debian packages, one layer per package.

use std::fs;
use std::path::Path;
use std::process::Command;

use container::Mount;
use integration_tests::{Fixture, shell, stderr, stdout};
use layer::{Base, Layer};

const MAKEFILE: &str = "/usr/local/bin/hello: /src/hello.c; mkdir -p $(@D) && tcc -o $@ $<\n";
const PROGRAM: &str = "#include <stdio.h>\nint main(void) { return puts(\"Hello from a layer.\") < 0; }\n";

/// Needs Debian or Ubuntu, with the packages in apt's cache or on a reachable mirror.
#[test]
fn a_program_is_compiled_and_runs_from_the_layer_that_it_became() {
    let fixture = Fixture::new();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/debian-layers");
    let dest = fixture.path().join("debian");
    let made =
        Command::new(script).arg(&dest).args(["tcc", "libc6-dev", "make", "dash", "coreutils"]).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));

    let base = Base::open(dest.join("base")).unwrap().with_image("debian");
    let list = fs::read_to_string(dest.join("layers")).unwrap();
    let layers: Vec<_> = list.lines().map(|dir| Layer::open(dir).unwrap()).collect();
    assert!(layers.len() > 10, "{list}");
    assert_eq!(layer::scan(dest.join("store")).unwrap().count(), layers.len());

    let src = fixture.path().join("src");
    fs::create_dir(&src).unwrap();
    fs::write(src.join("Makefile"), MAKEFILE).unwrap();
    fs::write(src.join("hello.c"), PROGRAM).unwrap();
    let mount = Mount::bind(&src, "/src").read_only();
    let template = shell("make -f /src/Makefile").mount(mount).build().unwrap();

    // The program is the same over stacked layers and over merged ones.
    for (max_lowers, name) in [(500, "stacked"), (6, "merged")] {
        let report = runner::run(&base, &layers, &template, fixture.options().max_lowers(max_lowers)).unwrap();
        assert!(report.status.success(), "{}{}", stdout(&report), stderr(&report));
        assert_eq!(report.plan.merged.is_empty(), max_lowers == 500);

        let hello = Layer::at(dest.join("store").join(name));
        let (capture, meta) = (report.capture(), report.meta());
        assert_eq!((meta.exit_status, meta.parent_hashes.len()), (0, layers.len()));
        report.upper.capture(&capture, &hello, meta).unwrap();
        let files =
            walkdir::WalkDir::new(hello.fs()).into_iter().filter(|entry| entry.as_ref().unwrap().file_type().is_file());
        assert_eq!(files.count(), 1, "the layer has more than the command wrote");

        let stack = [std::slice::from_ref(&hello), &layers].concat();
        let template = shell("hello").build().unwrap();
        let report = runner::run(&base, &stack, &template, fixture.options().max_lowers(max_lowers)).unwrap();
        assert_eq!(stdout(&report), "Hello from a layer.\n", "{}", stderr(&report));
    }
}
