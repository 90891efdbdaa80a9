//! Which kernel modules a guest needs, in the order in which they load, from `modules.dep`.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// The folder of kernel modules is not what is needed.
#[derive(Debug, Error)]
pub enum ModulesError {
    /// Not there or not readable.
    #[error("cannot read {}: {source}; does `scripts/guest-kernel` run through?", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// The kernel has no such module; it may be built in, which is not asked for here.
    #[error("the kernel in {} has no module {name}", folder.display())]
    Unknown {
        /// The module.
        name: String,
        /// The folder of modules.
        folder: PathBuf,
    },
    /// `modules.dep` contradicts itself.
    #[error("module {name} depends on itself")]
    Loop {
        /// The module.
        name: String,
    },
}

/// What a virtio network card on PCI needs.
pub const VIRTIO_NET: &[&str] = &["virtio_pci", "virtio_net"];

/// The files of `wanted` and of all they depend on, each after those it depends on. Modules that the
/// kernel has built in are left out.
pub fn load_order(folder: &Path, wanted: &[&str]) -> Result<Vec<PathBuf>, ModulesError> {
    let read = |name: &str| {
        let path = folder.join(name);
        fs::read_to_string(&path).map_err(|source| ModulesError::Read { path, source })
    };
    let order = resolve(&read("modules.dep")?, &read("modules.builtin")?, folder, wanted)?;
    Ok(order.into_iter().map(|path| folder.join(path)).collect())
}

fn resolve(
    dependencies: &str,
    builtin: &str,
    folder: &Path,
    wanted: &[&str],
) -> Result<Vec<String>, ModulesError> {
    let mut known: HashMap<String, (&str, Vec<String>)> = HashMap::new();
    for line in dependencies.lines() {
        let Some((path, needs)) = line.split_once(':') else { continue };
        known.insert(name_of(path), (path, needs.split_whitespace().map(name_of).collect()));
    }
    let builtin: Vec<String> = builtin.lines().map(name_of).collect();
    let mut search = Search { known: &known, order: Vec::new(), done: Vec::new(), open: Vec::new() };
    for name in wanted {
        let name = name.replace('-', "_");
        if builtin.contains(&name) {
            continue;
        }
        if !known.contains_key(&name) {
            return Err(ModulesError::Unknown { name, folder: folder.into() });
        }
        search.visit(&name)?;
    }
    Ok(search.order)
}

/// `kernel/drivers/net/virtio_net.ko.xz` is `virtio_net`.
fn name_of(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split('.').next().unwrap_or(file).replace('-', "_")
}

struct Search<'a> {
    known: &'a HashMap<String, (&'a str, Vec<String>)>,
    order: Vec<String>,
    done: Vec<String>,
    open: Vec<String>,
}

impl Search<'_> {
    /// Depth first. A line of `modules.dep` lists all that its module needs, near and far, in an order
    /// that is not always one in which they load; each one's own line settles it.
    fn visit(&mut self, name: &str) -> Result<(), ModulesError> {
        if self.done.iter().any(|done| done == name) {
            return Ok(());
        }
        if self.open.iter().any(|open| open == name) {
            return Err(ModulesError::Loop { name: name.into() });
        }
        let Some((path, needs)) = self.known.get(name) else { return Ok(()) };
        self.open.push(name.into());
        for need in needs {
            self.visit(need)?;
        }
        self.open.pop();
        self.done.push(name.into());
        self.order.push((*path).to_owned());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEPENDENCIES: &str = "\
kernel/drivers/virtio/virtio.ko.xz: kernel/drivers/virtio/virtio_ring.ko.xz
kernel/drivers/virtio/virtio_ring.ko.xz:
kernel/net/core/failover.ko:
kernel/drivers/net/net_failover.ko: kernel/net/core/failover.ko
kernel/drivers/net/virtio_net.ko: kernel/drivers/net/net_failover.ko kernel/net/core/failover.ko kernel/drivers/virtio/virtio.ko.xz kernel/drivers/virtio/virtio_ring.ko.xz
";

    fn names(wanted: &[&str]) -> Vec<String> {
        let order = resolve(DEPENDENCIES, "kernel/net/packet/af_packet.ko\n", Path::new("/m"), wanted);
        order.expect("resolved").iter().map(|path| name_of(path)).collect()
    }

    #[test]
    fn every_module_comes_after_those_it_needs_and_only_once() {
        let order = names(&["virtio-net", "failover"]);
        assert_eq!(order.len(), 5);
        let at = |name: &str| order.iter().position(|other| other == name).expect("there");
        assert!(at("virtio_ring") < at("virtio"));
        assert!(at("virtio") < at("virtio_net"));
        assert!(at("failover") < at("net_failover"));
    }

    #[test]
    fn builtin_modules_are_left_out_and_unknown_ones_named() {
        assert!(names(&["af_packet"]).is_empty());
        let error = resolve(DEPENDENCIES, "", Path::new("/m"), &["nvme"]).expect_err("unknown");
        assert!(error.to_string().contains("nvme"));
    }
}
