//! A look at everything on the disk, beside what the cache says of it.

use std::collections::BTreeSet;

use larder::domain::Digest;

use crate::stage::{Checked, Kept, Stage, check};
use crate::walk::Walk;

impl Stage<'_> {
    /// Fails unless the disk holds what it should, nothing else, and the cache counts it right.
    /// Nothing may be on its way. `swept`: something was just forgotten, and with it every stray.
    pub fn audit(&self, swept: bool) -> Checked {
        let kept = self.kept()?;
        let walk = Walk::of(&self.disk.store());
        check!(walk.scratch.is_empty(), "left in scratch/: {:?}", walk.scratch);
        let wrong = walk.wrong_blobs(&self.spoiled);
        check!(wrong.is_empty(), "blobs are not what their names say: {wrong:?}");
        let blobs: BTreeSet<Digest> = walk.blobs.keys().copied().collect();
        let lone_values: Vec<_> = walk.values.difference(&blobs).collect();
        check!(lone_values.is_empty(), "values without a blob: {lone_values:?}");
        let marked = self.marked();
        for (model, files) in &walk.trees {
            check!(walk.manifests.contains(model), "a tree without a manifest: {model}");
            let Some(expected) = self.models.get(model) else { return Err(format!("nobody ever had model {model}")) };
            for (path, number) in expected {
                let digest = crate::world::content(*number).digest;
                let (shown, blob) = (files.get(*path), walk.blobs.get(&digest).map(|blob| blob.inode));
                check!(
                    shown.is_none_or(|inode| !self.condemned.contains(inode)),
                    "tree {model} shows a wrong `{path}`"
                );
                // What is known to be wrong or missing is not there until it comes again.
                let may_lack = shown.is_none() && (marked.contains(&digest) || self.broken.contains(model));
                check!(may_lack || shown.copied() == blob, "tree {model}: `{path}` is not blob {digest}");
            }
            check!(
                files.keys().all(|path| expected.contains_key(path.as_str())),
                "tree {model} has too many: {files:?}"
            );
        }
        check!(walk.pins == self.pins, "pins are {:?}, should be {:?}", walk.pins, self.pins);
        let noted = walk.leases.len() + self.unwritten().len();
        check!(noted == self.leases.len(), "{noted} leases are noted or not, should be {:?}", self.leases);
        let unfinished = kept.records.values().any(|(model, _)| model.is_none());
        let named: BTreeSet<Digest> = kept
            .manifests
            .iter()
            .filter_map(|model| self.models.get(model))
            .flat_map(|files| files.values().map(|number| crate::world::content(*number).digest))
            .collect();
        if swept && !unfinished {
            let strays: Vec<_> = blobs.difference(&named).collect();
            check!(strays.is_empty(), "blobs that nothing names are left: {strays:?}");
        }
        self.accounts(&kept, &walk, unfinished)
    }

    fn accounts(&self, kept: &Kept, walk: &Walk, unfinished: bool) -> Checked {
        let status = self.life().cache().status().map_err(|error| error.to_string())?;
        let disk = status.disk;
        check!(disk.store == walk.bytes(), "the store says {} bytes, the disk {}", disk.store, walk.bytes());
        let shares = disk.evictable + disk.pinned + disk.leased;
        check!(shares == disk.store, "{shares} bytes have a share of {}: {disk:?}", disk.store);
        check!(disk.reserved == 0, "{} bytes are promised to nobody", disk.reserved);
        let (total, used) = self.disk.space();
        check!(disk.total == total && disk.total - disk.free == used, "{disk:?} of {total} bytes, {used} in use");
        check!(status.models == walk.manifests.len() as u64, "{} models are counted", status.models);
        check!(status.pins == self.pins.len() as u64, "{} pins are counted", status.pins);
        check!(
            status.leases.len() == self.leases.len() + self.held.len(),
            "{} leases are counted",
            status.leases.len()
        );
        check!(status.moving.is_empty(), "something moves: {:?}", status.moving);
        let share = |wanted: &dyn Fn(&Digest) -> bool| -> BTreeSet<Digest> {
            let models = kept.manifests.iter().filter(|model| wanted(model)).filter_map(|model| self.models.get(model));
            models.flat_map(|files| files.values().map(|number| crate::world::content(*number).digest)).collect()
        };
        let allocated = |blobs: &mut dyn Iterator<Item = &Digest>| -> u64 {
            let right = blobs.filter_map(|blob| walk.blobs.get(blob));
            right.filter(|blob| !self.condemned.contains(&blob.inode)).map(|blob| blob.allocated).sum()
        };
        let pinned = share(&|model| self.is_pinned(kept, model));
        let leased = share(&|model| self.is_leased(model) && !self.is_pinned(kept, model));
        // What an unfinished source has is known from its objects only.
        if !unfinished {
            let pinned_bytes = allocated(&mut pinned.iter());
            check!(disk.pinned == pinned_bytes, "{} bytes are pinned, should be {pinned_bytes}", disk.pinned);
            let leased_bytes = allocated(&mut leased.difference(&pinned));
            check!(disk.leased == leased_bytes, "{} bytes are leased, should be {leased_bytes}", disk.leased);
        }
        Ok(())
    }
}
