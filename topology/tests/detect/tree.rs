//! Writes what the kernel would show of a machine into a temporary folder.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use ringtree_topology::Roots;

/// A machine's `sys` and `proc`, until it is dropped.
pub struct Tree {
    root: PathBuf,
}

impl Tree {
    /// An empty one.
    pub fn empty() -> Tree {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let name = format!("ringtree-detect-{}-{number}", std::process::id());
        let root = std::env::temp_dir().join(name);
        fs::create_dir_all(root.join("sys/devices")).unwrap();
        Tree { root }
    }

    /// One with NUMA nodes of these processors, each a package of its own.
    pub fn new(nodes: &[&str]) -> Tree {
        let tree = Tree::empty();
        let mut online = Vec::new();
        for (node, cpus) in nodes.iter().enumerate() {
            let folder = format!("sys/devices/system/node/node{node}");
            tree.file(&format!("{folder}/cpulist"), cpus);
            tree.file(&format!("{folder}/meminfo"), &format!("Node {node} MemTotal: 1024 kB"));
            let distance = |other| if other == node { "10" } else { "21" };
            let distances: Vec<&str> = (0..nodes.len()).map(distance).collect();
            tree.file(&format!("{folder}/distance"), &distances.join(" "));
            let first = cpus.split('-').next().unwrap();
            let cpu = format!("sys/devices/system/cpu/cpu{first}/topology/physical_package_id");
            tree.file(&cpu, &node.to_string());
            online.push(*cpus);
        }
        tree.file("sys/devices/system/cpu/online", &online.join(","));
        let cpuinfo = "processor\t: 0\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t: 143\n";
        tree.file("proc/cpuinfo", cpuinfo);
        tree.file("proc/sys/kernel/hostname", "made-up");
        tree
    }

    pub fn roots(&self) -> Roots {
        Roots::recorded(&self.root)
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn file(&self, path: &str, text: &str) {
        let path = self.root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("{text}\n")).unwrap();
    }

    pub fn link(&self, path: &str, target: &str) {
        let path = self.root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(target, path).unwrap();
    }

    /// A PCI function at a path such as `pci0000:00/0000:00:01.0`, with `class`, `vendor` and
    /// `device`.
    pub fn function(&self, path: &str, [class, vendor, device]: [&str; 3]) -> Function<'_> {
        let folder = format!("sys/devices/{path}");
        let bus_id = path.rsplit('/').next().unwrap().to_owned();
        self.link(&format!("sys/bus/pci/devices/{bus_id}"), &format!("../../../devices/{path}"));
        let function = Function { tree: self, folder, bus_id };
        function.file("class", class).file("vendor", vendor).file("device", device)
    }

    /// A bridge: a root port, or a port of a switch.
    pub fn bridge(&self, path: &str) -> Function<'_> {
        self.function(path, ["0x060400", "0x1000", "0xc030"])
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.root);
    }
}

/// A PCI function, to be furnished.
pub struct Function<'t> {
    tree: &'t Tree,
    folder: String,
    bus_id: String,
}

impl Function<'_> {
    pub fn file(self, name: &str, text: &str) -> Self {
        self.tree.file(&format!("{}/{name}", self.folder), text);
        self
    }

    pub fn node(self, number: &str) -> Self {
        self.file("numa_node", number)
    }

    pub fn driver(self, name: &str) -> Self {
        let path = format!("{}/driver", self.folder);
        self.tree.link(&path, &format!("/sys/bus/pci/drivers/{name}"));
        self
    }

    /// The link as it is, and as it could be.
    pub fn pcie(self, [speed, width]: [&str; 2], [most_speed, most_width]: [&str; 2]) -> Self {
        self.file("current_link_speed", speed)
            .file("current_link_width", width)
            .file("max_link_speed", most_speed)
            .file("max_link_width", most_width)
    }

    /// A network interface with its speed and state.
    pub fn interface(self, name: &str, speed: &str, state: &str) -> Self {
        let folder = format!("{}/net/{name}", self.folder);
        let from_class = folder.replacen("sys/", "../../", 1);
        self.tree.link(&format!("sys/class/net/{name}"), &from_class);
        self.tree.link(&format!("{folder}/device"), &format!("../../../{}", self.bus_id));
        for (file, text) in [("speed", speed), ("operstate", state), ("type", "1"), ("mtu", "9000")]
        {
            self.tree.file(&format!("{folder}/{file}"), text);
        }
        self
    }

    /// A port of an RDMA device with its rate and state.
    pub fn rdma(self, name: &str, port: u32, rate: &str, state: &str, layer: &str) -> Self {
        let folder = format!("{}/infiniband/{name}", self.folder);
        if port == 1 {
            let from_class = folder.replacen("sys/", "../../", 1);
            self.tree.link(&format!("sys/class/infiniband/{name}"), &from_class);
            self.tree.link(&format!("{folder}/device"), &format!("../../../{}", self.bus_id));
            self.tree.file(&format!("{folder}/sys_image_guid"), "0c42:a103:0000:0001");
        }
        let folder = format!("{folder}/ports/{port}");
        let gids =
            ["fe80:0000:0000:0000:0e42:a1ff:fe00:0001", "0000:0000:0000:0000:0000:0000:0000:0000"];
        for (i, gid) in gids.iter().enumerate() {
            self.tree.file(&format!("{folder}/gids/{i}"), gid);
        }
        for (file, text) in [("rate", rate), ("state", state), ("link_layer", layer)] {
            self.tree.file(&format!("{folder}/{file}"), text);
        }
        self
    }
}
