use std::path::Path;

use container::advanced::{copy_root_attributes, unstarted};
use container::{
    Bundle, Cancel, Cgroup, ContainerId, Finished, Invocation, Mounted, Overlay, OverlayXattrs, Rootfs, Status,
    Template, in_private_mount_namespace, require_privilege,
};
use layer::{Base, Hold, Layer, Made, Merge, Merged, Plan, Rung, XattrNamespace};

use crate::error::{Cause, chain};
use crate::options::EtcFiles;
use crate::report::Origin;
use crate::rundir::scratch_dir;
use crate::scratch::Scratch;
use crate::sequence::Host;
use crate::stack::{Stack, hold, mechanism};
use crate::{Cleanup, Options, Removal, Upper, etc};

/// The machine it really runs on: each step with the two crates below.
pub(crate) struct Machine<'a> {
    base: &'a Base,
    layers: &'a [Layer],
    template: &'a Template,
    options: Options<'a>,
    id: Option<ContainerId>,
    hold: Option<Hold>,
    stack: Option<Stack<'a>>,
    plan: Option<Plan>,
    merged: Option<Merged>,
    made: Vec<Made>,
    /// The numbers of the user and the group. Those of a name are known when the root file system is mounted.
    user: (u32, u32),
}

/// What is known when the command has ended.
pub(crate) struct Outcome {
    pub(crate) finished: Finished,
    pub(crate) plan: Plan,
    pub(crate) origin: Origin,
    pub(crate) merged: Option<Merged>,
    pub(crate) made: Vec<Made>,
}

impl<'a> Machine<'a> {
    pub(crate) fn new(base: &'a Base, layers: &'a [Layer], template: &'a Template, options: Options<'a>) -> Self {
        let (id, hold, stack, plan) = (None, None, None, None);
        let user = template.user();
        Self { base, layers, template, options, id, hold, stack, plan, merged: None, made: Vec::new(), user }
    }

    fn id(&self) -> &ContainerId {
        self.id.as_ref().expect("the scratch directory comes first")
    }

    /// What is known when the command has ended.
    fn outcome(&mut self, finished: Finished) -> Outcome {
        let plan = self.plan.take().expect("planning comes first");
        // A tree stands in its layer's directory, whose name is the layer's.
        let names = plan.separate.iter().chain(&plan.merged).filter_map(|tree| tree.parent());
        let origin = Origin {
            base_hash: self.base.hash().into(),
            parent_hashes: names.map(|dir| Layer::at(dir).hash()).collect(),
            user: self.user,
            xattrs: self.xattrs(),
        };
        Outcome { finished, plan, origin, merged: self.merged.take(), made: std::mem::take(&mut self.made) }
    }

    /// Where overlayfs's notes are, as the layers' side has it.
    fn xattrs(&self) -> XattrNamespace {
        match self.options.xattrs {
            OverlayXattrs::Trusted => XattrNamespace::Trusted,
            OverlayXattrs::User => XattrNamespace::User,
        }
    }

    fn plan_made(&self) -> &Plan {
        self.plan.as_ref().expect("planning comes first")
    }
}

impl Host for Machine<'_> {
    type Scratch = Scratch;
    type Mounted = Mounted;
    type Bundle = Prepared;
    type Outcome = Outcome;
    type Upper = (Upper, Option<Removal>);

    fn inputs(&mut self) -> Result<(), Cause> {
        // From the beginning: it stays, whatever fails.
        if let Some(upper) = self.options.over.take() {
            self.options.over = Some(upper.into_kept()?);
        }
        require_privilege()?;
        Cgroup::require(self.template.controllers())?;
        // Before they are looked at: what is there then stays there.
        self.hold = hold(self.base, self.layers, self.options.cancel.as_ref())?;
        self.stack = Some(Stack::resolve(self.base, self.layers)?);
        Ok(())
    }

    fn scratch(&mut self) -> Result<Scratch, Cause> {
        let stack = self.stack.as_ref().expect("the inputs come first");
        let (mut scratch, id) = match self.options.over.take() {
            None => {
                let parent = scratch_dir(&self.options.scratch)?;
                stack.refuse_scratch(&parent)?;
                Scratch::create(&parent)?
            }
            Some(upper) => {
                stack.refuse_scratch(upper.path())?;
                Scratch::over(upper)?
            }
        };
        self.id = Some(id);
        scratch.hold(self.hold.take(), self.xattrs());
        Ok(scratch)
    }

    fn touch(&mut self) {
        self.stack.iter().for_each(Stack::touch);
    }

    fn plan(&mut self, scratch: &Scratch) -> Result<(), Cause> {
        let stack = self.stack.as_ref().expect("the inputs come first");
        self.plan = Some(stack.plan(&self.options, scratch)?);
        Ok(())
    }

    fn merge(&mut self, scratch: &Scratch) -> Result<(), Cause> {
        let merged = &self.plan_made().merged;
        if !merged.is_empty() {
            let xattrs = self.xattrs();
            let cancel = self.options.cancel.clone();
            let stop = || cancel.as_ref().is_some_and(Cancel::is_cancelled);
            match Merge::new().xattrs(xattrs).run_until(merged, scratch.lower(), &stop) {
                Ok(merged) => self.merged = Some(merged),
                Err(layer::Error::Stopped { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn is_cancelled(&self) -> bool {
        self.options.cancel.as_ref().is_some_and(Cancel::is_cancelled)
    }

    fn never_begun(&mut self, scratch: &Scratch) -> Outcome {
        let plan = self.plan_made();
        let topmost = plan.separate.first().or(plan.merged.first()).unwrap_or(&plan.base);
        // An upper like any other, should somebody keep it.
        if let Err(error) = copy_root_attributes(topmost, &scratch.upper()) {
            log::warn!("{}", chain(&error));
        }
        self.outcome(unstarted(Status::Cancelled))
    }

    fn prep_upper(&mut self, scratch: &Scratch) -> Result<(), Cause> {
        let lowers = self.plan_made().lowers(&scratch.lower());
        if !scratch.is_kept() {
            copy_root_attributes(&lowers[0], &scratch.upper())?;
        }
        match self.options.prep_upper.take() {
            Some(prepare) => prepare(&scratch.upper(), &lowers).map_err(Cause::PrepUpper),
            None => Ok(()),
        }
    }

    fn privately<T: Send>(&mut self, work: impl FnOnce(&mut Self) -> T + Send) -> Result<T, Cause> {
        Ok(in_private_mount_namespace(|| work(self))?)
    }

    fn mount(&mut self, scratch: &Scratch) -> Result<Mounted, Cause> {
        let plan = self.plan_made();
        let (api, names) = mechanism(plan.rung);
        let mut overlay = Overlay::new(plan.lowers(&scratch.lower()))
            .writable(scratch.upper(), scratch.work())
            .devices(self.options.devices)
            .xattrs(self.options.xattrs)
            .api(api);
        if plan.rung != Rung::LowerdirPlus {
            overlay = overlay.names(names);
        }
        scratch.mount_bundle()?;
        Ok(overlay.mount(scratch.merged())?)
    }

    fn config(&mut self, scratch: &Scratch, mounted: &Mounted) -> Result<Prepared, Cause> {
        let mut rootfs = Rootfs::open(mounted.path())?;
        rootfs.refuse_links()?;
        if self.options.etc == EtcFiles::Provided {
            for file in etc::files(self.template) {
                let covered = self.template.mounts().any(|mount| file.path.starts_with(mount.destination()));
                let callers = scratch.upper().join(file.path.strip_prefix("/").unwrap_or(file.path));
                if !covered && callers.symlink_metadata().is_err() {
                    rootfs.put_file(file.path, &file.contents)?;
                }
            }
        }
        rootfs.mount_points(self.template)?;
        let user = rootfs.find_user(self.template)?;
        self.user = (user.uid(), user.gid());
        // Where the caller has left a link or a mount in the upper, it is not found and stays the upper's own.
        self.made = Made::look(scratch.upper(), rootfs.created())?;
        // Before the command runs, which may fill the disk.
        scratch.record(&self.made, self.xattrs())?;

        let cgroup = Cgroup::new(self.id().as_str())?;
        let config = self.template.instantiate(mounted.path())?;
        // A template from a file may name a group of its own, which is then the runtime's to remove.
        let own = config.cgroups_path().is_none();
        let config = config.with_default_cgroups_path(cgroup.container_path()).with_user(user);
        let bundle = Bundle::create(scratch.bundle(), &config)?;
        Ok(Prepared { bundle, cgroup: own.then_some(cgroup) })
    }

    fn runtime(&mut self, prepared: Prepared) -> Result<Outcome, Cause> {
        let options = &mut self.options;
        let runtime = &options.runtime;
        let id = self.id.as_ref().expect("the scratch directory comes first");
        let mut invocation = Invocation::new(&prepared.bundle, id)
            .stdin(std::mem::take(&mut options.stdin))
            .stdout(std::mem::take(&mut options.stdout))
            .stderr(std::mem::take(&mut options.stderr))
            .init(options.init);
        if let Some(cgroup) = &prepared.cgroup {
            invocation = invocation.cgroup(cgroup);
        }
        if let Some(timeout) = options.timeout {
            invocation = invocation.timeout(timeout);
        }
        if let Some(grace) = options.grace {
            invocation = invocation.grace(grace);
        }
        if let Some(cancel) = &options.cancel {
            invocation = invocation.cancel(cancel);
        }
        if let Some(signals) = &options.signals {
            invocation = invocation.signals(signals);
        }
        if let Some(bytes) = options.output_limit_bytes {
            invocation = invocation.output_limit_bytes(bytes);
        }
        let finished = runtime.run(invocation)?;
        Ok(self.outcome(finished))
    }

    fn unmount(&mut self, mounted: Mounted) -> Result<(), Cause> {
        Ok(mounted.unmount()?)
    }

    fn cleanup(&mut self, scratch: Scratch) -> Result<Self::Upper, Cause> {
        let (upper, removal) = match self.options.cleanup {
            Cleanup::Behind if !scratch.is_kept() => scratch.into_upper_behind()?,
            _ => (scratch.into_upper()?, None),
        };
        Ok((upper, removal))
    }

    fn discard(&mut self, scratch: Scratch) -> Result<(), Cause> {
        scratch.remove()
    }

    fn leave(&mut self, scratch: Scratch) {
        scratch.leave();
    }

    fn dir(scratch: &Scratch) -> &Path {
        scratch.dir()
    }
}

/// What the runtime is pointed at.
pub(crate) struct Prepared {
    bundle: Bundle,
    cgroup: Option<Cgroup>,
}
