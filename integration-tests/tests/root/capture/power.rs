//! Captures that a power cut interrupts: checks the content of the disk at each step. Needs loop
//! devices and mkfs.ext4.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;

use integration_tests::disk::{Disk, run};
use integration_tests::stack::{private_mounts, require_root};
use layer::{Capture, Draft, Layer, Step};
use rustix::fs::{XattrFlags, setxattr};

use super::{meta, names};

/// Copies the image as it is at one moment. The kernel may write to the disk at any time, because
/// any program on the machine may call sync(2). A copy during such a write would show no real
/// moment. So this copies until image and copy are equal afterwards; the copy then shows the moment
/// between copying and comparing.
fn snapshot(image: &Path, copy: &Path) {
    let [image, copy] = [image, copy].map(|path| path.to_str().unwrap());
    loop {
        run("cp", &["--sparse=always", image, copy]);
        if Command::new("cmp").args(["--quiet", image, copy]).status().unwrap().success() {
            return;
        }
    }
}

/// The content is larger than one write-back by the kernel.
fn content() -> String {
    "0123456789abcdef".repeat(1 << 16)
}

/// How the layer appears.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    InItsDirectory,
    AsADraft,
}

#[test]
fn a_power_cut_at_any_step_leaves_a_whole_layer_or_none() {
    require_root();
    for way in [Way::InItsDirectory, Way::AsADraft] {
        // The mounts belong to this thread and the programs that it starts.
        std::thread::spawn(move || cut_at_every_step(way)).join().unwrap();
    }
}

fn cut_at_every_step(way: Way) {
    private_mounts().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk");
    Disk::format(&image, 64 << 20, "");
    let disk = Disk::mount(&image, dir.path().join("mounted"));
    let (lower, upper) = (disk.path().join("lower"), disk.path().join("upper"));
    fs::create_dir_all(lower.join("dir")).unwrap();
    fs::create_dir_all(upper.join("dir")).unwrap();
    fs::write(lower.join("dir/old"), "").unwrap();
    fs::write(upper.join("dir/large"), content()).unwrap();
    fs::write(upper.join("small"), "small").unwrap();
    setxattr(upper.join("dir"), "trusted.overlay.opaque", b"y", XattrFlags::empty()).unwrap();

    // A power cut keeps only the data that has reached the disk by then. The last cut is just after
    // the capture.
    let cuts = Mutex::new(Vec::new());
    let cut = |step: Option<Step>| {
        let mut cuts = cuts.lock().unwrap();
        let copy = dir.path().join(format!("cut{}", cuts.len()));
        snapshot(&image, &copy);
        cuts.push((step, copy));
    };
    let progress = |step| cut(Some(step));
    let capture = Capture::new([&lower]).progress(&progress);
    match way {
        Way::InItsDirectory => capture.into_layer(&upper, &Layer::at(disk.path().join("layer")), meta()).unwrap(),
        Way::AsADraft => {
            let draft = Draft::begin(disk.path()).unwrap();
            draft.write_sidecar("run", "a command").unwrap();
            capture.publish(&upper, draft, "layer", meta()).unwrap()
        }
    };
    cut(None);
    drop(disk);

    let cuts = cuts.into_inner().unwrap();
    assert_eq!(cuts.len(), Step::ALL.len() + 1);
    for (step, image) in cuts {
        let disk = Disk::mount(&image, dir.path().join("after"));
        let layer = Layer::at(disk.path().join("layer"));
        match layer.meta().unwrap() {
            Some(meta) => {
                let appears = |step| way == Way::InItsDirectory && step > Step::Publish;
                assert!(step.is_none_or(appears), "{way:?} {step:?}");
                let sidecar = layer.read_sidecar::<String>("run").unwrap();
                assert_eq!(sidecar.is_some(), way == Way::AsADraft, "{step:?}");
                assert_eq!(meta.disk_usage, layer.measure().unwrap().bytes, "{step:?}");
            }
            // The case of a draft cannot detect that the last sync of the capture is missing: on
            // ext4, fsync(2) of the store commits the whole journal.
            None => assert!(step.is_some(), "a capture that has returned must be durable"),
        }
        // The content of the layer reaches the disk before the layer gets its name.
        let has_tree = |step| way == Way::InItsDirectory && step >= Step::Publish;
        if step.is_none_or(has_tree) {
            assert_eq!(names(&layer.fs()), ["dir", "dir/large", "dir/old", "small"], "{step:?}");
            assert!(fs::read_to_string(layer.fs().join("dir/large")).unwrap() == content(), "{step:?}");
            assert_eq!(fs::read_to_string(layer.fs().join("small")).unwrap(), "small", "{step:?}");
        }
    }
}
