//! A farm of three nodes: Slurm places the steps of `docs/cluster`, and a registry carries the
//! layers. A node dies, the registry goes away, a disk is full, and two steps make one layer.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::SystemTime;

use integration_tests::cluster::{Cluster, Fifo, Job};
use integration_tests::disk::{self, Disk};
use integration_tests::registry::DockerRegistry;
use integration_tests::stack::private_mounts;
use integration_tests::{Fixture, layered};
use layer::{Layer, Meta};

const NODES: [&str; 3] = ["n1", "n2", "n3"];

/// The layers of the farm, and what they stand on directly.
const FARM: [(&str, &[&str]); 8] = [
    ("a", &[]),
    ("b", &[]),
    ("c", &[]),
    ("d", &["a", "b"]),
    ("e", &["b", "c"]),
    ("f", &["d"]),
    ("g", &["e"]),
    ("h", &["f", "g"]),
];

/// Returns the command of a layer. It tells the test that it has begun, waits until the test lets
/// it go on, and lists the layers that it sees. `id` makes its tree different from that of any
/// other run.
fn command(name: &str) -> String {
    format!(
        "echo {name} >/farm/begun; read go </farm/{name}; mkdir -p /pkg; \
         echo $(ls /pkg) >/pkg/{name}; cat /proc/sys/kernel/random/uuid >/pkg/{name}.id"
    )
}

fn plan() -> String {
    let line = |(name, below): &(&str, &[&str])| format!("{name} {}: {}\n", below.join(" "), command(name));
    FARM.iter().map(line).collect()
}

/// Returns all layers below a layer.
fn below(name: &str) -> BTreeSet<&'static str> {
    let (_, direct) = FARM.iter().find(|(known, _)| *known == name).unwrap();
    direct.iter().flat_map(|lower| below(lower).into_iter().chain([*lower])).collect()
}

fn named<'j>(jobs: &'j [Job], layer: &str) -> &'j Job {
    jobs.iter().filter(|job| job.layer == layer).min_by_key(|job| job.id).expect("a job for each layer")
}

fn names(dir: &Path) -> BTreeSet<String> {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// Runs a step without Slurm.
fn step(store: &Path, pins: &Path, registry: &str, arguments: &[&str]) -> Option<i32> {
    let programs = Path::new(layered().get_program()).parent().unwrap().to_path_buf();
    let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/cluster/step"));
    command.args(arguments).env("PATH", format!("{}:{}", programs.display(), std::env::var("PATH").unwrap()));
    command.env("LAYERED_STORE", store).env("FARM_PINS", pins).env("FARM_REGISTRY", registry);
    command.env("FARM_BASE", "base").env("FARM_MIN_FREE", "1").env("FARM_MIN_INODES", "1");
    command.env_remove("SLURM_RESTART_COUNT");
    command.status().unwrap().code()
}

#[test]
fn a_step_uses_the_pinned_layers_only() {
    private_mounts().unwrap();
    let (fixture, registry) = (Fixture::new(), DockerRegistry::start());
    let [store, new, pins, made] = ["node", "node.new", "pins", "made"].map(|name| fixture.path().join(name));
    [&store, &new, &pins, &made].iter().for_each(|dir| fs::create_dir(dir).unwrap());
    fixture.watch(&new);
    let make = |dir: &Path, text: &str| {
        let layer = Layer::at(dir.join("a"));
        fs::create_dir_all(layer.fs()).unwrap();
        fs::write(layer.fs().join("text"), text).unwrap();
        layer.write_meta(&Meta::new("a", SystemTime::UNIX_EPOCH)).unwrap();
        layer
    };
    // The node has a layer that was made again elsewhere.
    make(&store, "old");
    let base = Layer::at(fixture.base().path());
    base.write_meta(&Meta::new("base", SystemTime::UNIX_EPOCH)).unwrap();
    let repository = registry.repository("farm");
    let remade = make(&made, "new");
    let layers = [&base, &remade].map(Layer::path);
    let pushed = layered().arg("push").args(layers).args([&repository, "--json"]).output().unwrap();
    assert!(pushed.status.success(), "{pushed:?}");
    let pushed: serde_json::Value = serde_json::from_slice(&pushed.stdout).unwrap();
    fs::write(pins.join("a"), pushed["layers"][1]["manifest"].as_str().unwrap()).unwrap();
    let command = ["b", "a", "--", "--network=none", "--", "sh", "-c", "cat /text >/seen"];

    // The directory of the pins is not mounted.
    assert_eq!(step(&store, &pins, &repository, &command), Some(75));
    fs::write(pins.join(".farm"), "").unwrap();
    // A layer could not be moved from one mount to the other, so nothing is pulled or run.
    let at = new.to_str().unwrap();
    disk::run("mount", &["--bind", at, at]);
    assert_eq!(step(&store, &pins, &repository, &command), Some(1));
    assert_eq!(names(&store).into_iter().filter(|name| name != ".layered").collect::<Vec<_>>(), ["a"]);
    disk::run("umount", &["--lazy", at]);
    assert_eq!(step(&store, &pins, &repository, &command), Some(0));
    assert_eq!(fs::read_to_string(store.join("b/fs/seen")).unwrap(), "new");
    assert_eq!(fs::read_to_string(store.join("a/fs/text")).unwrap(), "new");
    assert_eq!(names(&pins), [".farm", "a", "b"].map(String::from).into());

    // A layer that was pushed, and is not there any more, is not made as if it were new.
    fs::write(pins.join("c"), format!("sha256:{}", "0".repeat(64))).unwrap();
    let command = ["c", "--", "--network=none", "--", "sh", "-c", "echo >/c"];
    assert_eq!(step(&store, &pins, &repository, &command), Some(1));
    assert!(!new.join("c").exists() && !store.join("c").exists());
}

/// Takes about a minute, half of which Slurm needs to notice that a node is dead.
#[test]
fn a_farm_outlives_a_node_the_registry_and_a_full_disk() {
    let fixture = Fixture::new();
    std::thread::scope(|scope| scope.spawn(|| farm(&fixture)).join().unwrap());
}

fn farm(fixture: &Fixture) {
    private_mounts().unwrap();
    let dir = fixture.path().join("cluster");
    let pipes = fixture.path().join("pipes");
    for path in ["logs", "pins", "pipes"] {
        fs::create_dir(fixture.path().join(path)).unwrap();
    }
    let mut begun = Fifo::make(&pipes.join("begun"));
    let gates = FARM.iter().map(|(name, _)| *name).chain(["twice"]);
    let mut gates: BTreeMap<&str, Fifo> = gates.map(|name| (name, Fifo::make(&pipes.join(name)))).collect();

    // The third node has a disk of its own, which is full.
    let image = fixture.path().join("disk");
    Disk::format(&image, 64 << 20, "");
    let disk = Disk::mount(&image, dir.join("nodes/n3/disk"));
    for node in NODES {
        let new = dir.join("nodes").join(node).join("disk/store.new");
        fs::create_dir_all(&new).unwrap();
        fixture.watch(&new);
    }
    disk.fill();

    let mut cluster = Cluster::start(&dir, 3);
    cluster.set("FARM_BASE", "base");
    cluster.set("FARM_MIN_FREE", 8 << 20);
    cluster.set("FARM_MIN_INODES", 1000);
    cluster.set("FARM_TRIES", 1000);
    cluster.set("FARM_LOGS", fixture.path().join("logs").display());
    cluster.set("FARM_PINS", fixture.path().join("pins").display());
    // Each node has one job at a time.
    cluster.set("SBATCH_EXCLUSIVE", "exclusive");
    let registry = cluster.get("FARM_REGISTRY").to_string();
    let base = Layer::at(fixture.base().path());
    base.write_meta(&Meta::new("base", SystemTime::UNIX_EPOCH)).unwrap();
    cluster.output("layered", &["push", base.path().to_str().unwrap(), &registry]);
    let volume = format!("--volume={}:/farm", pipes.display());
    let options = ["--network=none", &volume];

    // Three layers can begin. The one that comes to the full disk cannot, and is tried again. Each
    // layer has two jobs, of which the second finds it in the registry.
    cluster.submit(&plan().repeat(2), &options);
    let first = [begun.line(), begun.line()];
    let unlucky = ["a", "b", "c"].into_iter().find(|name| !first.iter().any(|begun| begun == name)).unwrap();
    let jobs = cluster.until("a full disk", |jobs| named(jobs, unlucky).restarts > 0);
    let victim = named(&jobs, &first[0]).node.clone();
    assert!(["n1", "n2"].contains(&&*victim), "{jobs:#?}");
    fs::remove_file(disk.path().join("blocks")).unwrap();
    fs::remove_dir_all(disk.path().join("inodes")).unwrap();

    // A node dies while it makes a layer. Another one makes it again.
    cluster.kill(&victim);
    for name in ["a", "b", "c", "d", "f", "g", "h"] {
        gates.get_mut(name).unwrap().open_for_all();
    }
    let mut seen = first.to_vec();
    while seen.last().is_none_or(|name| name != "e") {
        seen.push(begun.line());
    }

    // The registry goes away while `e` is made, so it cannot be pushed, and comes back.
    cluster.kill("registry");
    gates.get_mut("e").unwrap().open_for_all();
    let before = named(&cluster.jobs(), "e").restarts;
    cluster.until("a registry that is away", |jobs| named(jobs, "e").restarts > before);
    cluster.restart("registry");
    let jobs = cluster.until_all_ended();
    assert!(jobs.iter().all(|job| job.state == "COMPLETED"), "{jobs:#?}\n{}", cluster.logs());
    cluster.restart(&victim);
    seen.extend(begun.lines());

    // A command runs once, and again only after a failure. The second jobs run none.
    for (name, _) in FARM {
        let times = seen.iter().filter(|begun| *begun == name).count();
        let most = 1 + named(&jobs, name).restarts as usize;
        assert!((1..=most).contains(&times), "{name} was made {times} times: {jobs:#?}");
    }
    // A layer that is made needs no job.
    assert_eq!(cluster.submit(&plan(), &options), Vec::<String>::new());

    two_steps_for_one_layer(&cluster, &mut begun, gates.get_mut("twice").unwrap(), &volume);
    failures_end_what_depends_on_them(&cluster);

    whole_layers(fixture, &cluster, &registry);
    nothing_half(&cluster);
    drop(cluster);
    fixture.assert_nothing_lives();
    drop(disk);
}

/// Two nodes make a layer at the same time, because no `singleton` keeps them apart. The first push
/// wins.
fn two_steps_for_one_layer(cluster: &Cluster, begun: &mut Fifo, gate: &mut Fifo, volume: &str) {
    let step = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/cluster/step");
    let output = format!("--output={}/twice-%N.log", cluster.get("FARM_LOGS"));
    for node in ["n1", "n2"] {
        let command = command("twice");
        let mut arguments =
            vec!["--job-name=twice", &output, "--nodelist", node, step.to_str().unwrap(), "twice", "--"];
        arguments.extend([volume, "--", "sh", "-c", &command]);
        cluster.output("sbatch", &arguments);
    }
    assert_eq!([begun.line(), begun.line()], ["twice", "twice"]);
    let is_done = |job: &&Job| job.layer == "twice" && job.has_ended();
    gate.open_for_one();
    let jobs = cluster.until("a first push", |jobs| jobs.iter().any(|job| is_done(&job)));
    let winner = jobs.iter().find(is_done).unwrap().node.clone();
    gate.open_for_one();
    let jobs = cluster.until_all_ended();
    assert!(jobs.iter().all(|job| job.state == "COMPLETED"), "{jobs:#?}\n{}", cluster.logs());
    // The loser has no layer of that name, so the next step there pulls that of the winner.
    let have_it: Vec<_> = NODES.into_iter().filter(|node| cluster.disk(node).join("store/twice").exists()).collect();
    assert_eq!(have_it, [winner], "{}", cluster.logs());
}

/// A command that fails ends all that depends on it, whatever its status is.
fn failures_end_what_depends_on_them(cluster: &Cluster) {
    cluster.submit("bad: exit 75\nworse bad: true\n", &[]);
    let jobs = cluster.until_all_ended();
    let state = |layer| (&*named(&jobs, layer).state, named(&jobs, layer).restarts);
    assert_eq!((state("bad"), state("worse")), (("FAILED", 0), ("CANCELLED", 0)));
}

/// The registry has every layer, and each has what its command saw and wrote.
fn whole_layers(fixture: &Fixture, cluster: &Cluster, registry: &str) {
    let all = fixture.path().join("all");
    fs::create_dir(&all).unwrap();
    let pinned = |name: &str| {
        let pin = fs::read_to_string(Path::new(cluster.get("FARM_PINS")).join(name)).unwrap();
        format!("{name}@{}", pin.trim_end())
    };
    let names = FARM.iter().map(|(name, _)| *name).chain(["twice"]);
    let pinned: Vec<String> = names.map(pinned).collect();
    let mut arguments = vec!["pull", all.to_str().unwrap(), registry];
    arguments.extend(pinned.iter().map(String::as_str));
    cluster.output("layered", &arguments);
    cluster.output("layered", &["verify", all.to_str().unwrap()]);
    for (name, _) in FARM {
        let listed = fs::read_to_string(all.join(name).join("fs/pkg").join(name)).unwrap();
        let listed: BTreeSet<&str> = listed.split_whitespace().filter(|entry| !entry.ends_with(".id")).collect();
        assert_eq!(listed, below(name), "what {name} saw");
    }
    // A name alone gives the same layers as the pins.
    for (name, _) in FARM {
        let id = |store: &Path| fs::read_to_string(store.join(name).join(format!("fs/pkg/{name}.id"))).unwrap();
        for node in NODES {
            let store = cluster.disk(node).join("store");
            assert!(
                !store.join(name).exists() || id(&store) == id(&all),
                "{name} on {node} is not that of the registry"
            );
        }
    }
}

/// The stores of the nodes have whole layers only, and a step that has ended leaves nothing else.
fn nothing_half(cluster: &Cluster) {
    for node in NODES {
        // As the next step on the node does it.
        cluster.on(node, "layered sweep $LAYERED_STORE.new; layered gc $LAYERED_STORE.new --max-age 1d; layered gc $LAYERED_STORE --min-free 1");
        let disk = cluster.disk(node);
        assert!(layered().arg("verify").arg(disk.join("store")).status().unwrap().success());
        for store in ["store", "store.new"] {
            let area = disk.join(store).join(".layered");
            let left = if area.exists() { names(&area.join("new")) } else { BTreeSet::new() };
            assert_eq!(left, BTreeSet::new(), "in {}", area.display());
        }
        let visible: Vec<_> = names(&disk.join("store.new")).into_iter().filter(|name| name != ".layered").collect();
        assert_eq!(visible, Vec::<String>::new(), "in the store of new layers of {node}");
    }
}
