//! Compiles the helper program, which `src/supervise/helper.rs` embeds. The same compiler builds it
//! as a static program without a C library.

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=helper");
    println!("cargo::rustc-check-cfg=cfg(helper)");
    let variable = |name: &str| env::var_os(name).unwrap_or_else(|| panic!("cargo sets {name}"));
    let target = env::var("TARGET").expect("cargo sets TARGET");
    let arch = env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets CARGO_CFG_TARGET_ARCH");
    assert!(
        ["x86_64", "aarch64"].contains(&&*arch) && env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "linux"),
        "the container crate supports only x86_64 and aarch64 Linux, not {target}: its helper program is written for those two"
    );
    let mut rustc = Command::new(variable("RUSTC"));
    rustc.args(["--edition=2024", "--crate-name=helper", "--crate-type=bin", "--cfg=helper", "--target", &target]);
    rustc.args(["-Copt-level=s", "-Cpanic=abort", "-Cstrip=symbols", "-Cdebuginfo=0", "-Coverflow-checks=off"]);
    // The program is not relocated at start-up and takes nothing from the C library.
    rustc.args(["-Crelocation-model=static", "-Ctarget-feature=+crt-static"]);
    rustc.args(
        ["-nostartfiles", "-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none"]
            .map(|word| format!("-Clink-arg={word}")),
    );
    if env::var("CARGO_CFG_TARGET_ENV").is_ok_and(|env| env == "musl") {
        // rustc brings its own start files for musl; the helper has its own.
        rustc.arg("-Clink-self-contained=no");
    }
    if let Some(linker) = env::var_os("RUSTC_LINKER") {
        let mut option = OsString::from("-Clinker=");
        option.push(linker);
        rustc.arg(option);
    }
    // Of the caller's flags, only `--sysroot` applies, since it locates the core library. Flags
    // that tune or instrument programs do not suit this one.
    let flags = env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default();
    rustc.args(flags.split('\x1f').filter(|flag| flag.starts_with("--sysroot=")));
    rustc.arg("-o").arg(PathBuf::from(variable("OUT_DIR")).join("helper")).arg("helper/main.rs");
    let status = rustc.status().unwrap_or_else(|error| panic!("cannot start {rustc:?}: {error}"));
    assert!(status.success(), "cannot compile the helper: {rustc:?}");
}
