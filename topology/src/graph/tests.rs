//! What edges a machine gives.

use crate::{EdgeKind, Graph, Machine, NodeKind};

fn graph(text: &str) -> (Graph, Vec<String>) {
    let (graph, warnings) = Graph::new(&Machine::from_xml(text).expect("a machine"));
    (graph, warnings.iter().map(|w| format!("{}: {}", w.subject, w.message)).collect())
}

/// Names of both ends, GB/s rounded, links; one way of each edge.
fn edges(graph: &Graph, kind: EdgeKind) -> Vec<(String, String, f64, u32)> {
    let one_way = graph.edges.iter().step_by(2).filter(|edge| edge.kind == kind);
    let name = |id| graph.node(id).name.clone();
    let shown = one_way.map(|edge| {
        let gigabytes_per_s = (edge.bandwidth_bytes_per_s / 1e8).round() / 10.0;
        (name(edge.from), name(edge.to), gigabytes_per_s, edge.links)
    });
    shown.collect()
}

fn bandwidths(graph: &Graph, kind: EdgeKind) -> Vec<f64> {
    edges(graph, kind).into_iter().map(|edge| edge.2).collect()
}

const AMD: &str = "arch=\"x86_64\" vendor=\"AuthenticAMD\"";

#[test]
fn every_link_is_two_edges() {
    let (graph, _) = graph(include_str!("../../tests/files/nvswitch-8gpu-8nic.xml"));
    for pair in graph.edges.chunks(2) {
        let back = crate::Edge { from: pair[1].to, to: pair[1].from, ..pair[1] };
        assert_eq!(pair[0], back);
    }
}

#[test]
fn pcie_by_generation_and_width() {
    let pci = |n: usize, speed: &str, width: &str| {
        format!(
            "<pci busid=\"0:{n:x}:0.0\" class=\"0x060400\" link_speed=\"{speed}\" link_width=\"{width}\"/>"
        )
    };
    let devices = [
        pci(1, "2.5 GT/s", "16"),
        pci(2, "5 GT/s", "16"),
        pci(3, "8 GT/s", "16"),
        pci(4, "16.0 GT/s PCIe", "8"),
        pci(5, "32.0 GT/s PCIe", "16"),
        pci(6, "64.0 GT/s", "16"),
        pci(7, "", "8"),
        pci(8, "16 GT/s", "0"),
        pci(9, "Unknown", ""),
    ];
    let (graph, warnings) = graph(&format!(
        "<system version=\"1\"><cpu numaid=\"0\" {AMD}>{}</cpu></system>",
        devices.concat()
    ));
    let expected = [4.0, 8.0, 15.8, 15.8, 63.0, 118.0, 7.9, 31.5, 15.8];
    assert_eq!(bandwidths(&graph, EdgeKind::Pcie), expected);
    assert_eq!(
        warnings,
        [
            "0000:07:00.0: PCIe speed is unknown: 8 GT/s assumed",
            "0000:08:00.0: PCIe width is unknown: x16 assumed",
            "0000:09:00.0: PCIe speed is unknown: 8 GT/s assumed, width is unknown: x16 assumed",
        ]
    );
}

#[test]
fn links_of_gpus_by_generation_and_by_both_ends() {
    let gpu = |n: u32, attributes: &str, links: &str| {
        format!(
            "<pci busid=\"0:{n:x}:0.0\" link_speed=\"16 GT/s\" link_width=\"16\">\
             <gpu dev=\"{n}\" {attributes}>{links}</gpu></pci>"
        )
    };
    let link = |kind: &str, to: u32, count: u32| {
        format!("<{kind} target=\"0:{to:x}:0.0\" count=\"{count}\" tclass=\"0x030200\"/>")
    };
    let gpus = [
        gpu(1, "sm=\"70\"", &link("nvlink", 2, 2)),
        gpu(2, "sm=\"70\"", &link("nvlink", 1, 2)),
        gpu(3, "sm=\"90\"", &link("nvlink", 4, 3)),
        gpu(4, "sm=\"90\"", &link("nvlink", 3, 2)),
        gpu(5, "gcn=\"gfx942\"", &link("xgmi", 6, 1)),
        gpu(6, "gcn=\"gfx942\"", ""),
        gpu(7, "", &link("nvlink", 8, 1)),
        gpu(8, "sm=\"80\"", &link("nvlink", 7, 1)),
        gpu(9, "sm=\"80\"", &link("nvlink", 77, 4)),
        gpu(10, "sm=\"80\"", &link("nvlink", 10, 4)),
    ];
    let (graph, warnings) = graph(&format!(
        "<system version=\"1\"><cpu numaid=\"0\" {AMD}>{}</cpu></system>",
        gpus.concat()
    ));
    let named = |a: &str, b: &str, width, links| (a.to_owned(), b.to_owned(), width, links);
    assert_eq!(
        edges(&graph, EdgeKind::NvLink),
        [
            named("GPU1", "GPU2", 40.0, 2),
            named("GPU3", "GPU4", 41.2, 2),
            named("GPU7", "GPU8", 20.0, 1)
        ]
    );
    assert_eq!(edges(&graph, EdgeKind::Xgmi), [named("GPU5", "GPU6", 48.0, 1)]);
    assert_eq!(
        warnings,
        [
            "GPU7 (0000:07:00.0): compute capability is unknown: NVLinks of 20 GB/s assumed",
            "GPU9 (0000:09:00.0): has 4 links with 0000:4d:00.0, which is not here: left out",
            "GPU10 (0000:0a:00.0): gives itself as the other end of its 4 links: left out",
            "GPU3 (0000:03:00.0): has 3 or 2 links with GPU4, as either says: 2 assumed",
            "GPU5 (0000:05:00.0): has 1 link with GPU6, which names none: believed",
        ]
    );
}

#[test]
fn links_with_processors_and_switches() {
    let (graph, warnings) = graph(&format!(
        "<system version=\"1\"><cpu numaid=\"0\" {AMD}>\
         <pci busid=\"0:1:0.0\" link_speed=\"32 GT/s\" link_width=\"16\"><gpu dev=\"0\" sm=\"90\">\
           <c2c bw=\"44000\" count=\"10\"/>\
           <nvlink target=\"0:99:0.0\" count=\"9\" tclass=\"0x068000\"/>\
           <nvlink target=\"0:98:0.0\" count=\"9\" tclass=\"0x068000\"/></gpu></pci>\
         <pci busid=\"0:2:0.0\" link_speed=\"32 GT/s\" link_width=\"16\"><gpu dev=\"1\" sm=\"70\">\
           <nvlink target=\"4:4:0.0\" count=\"3\" tclass=\"0x068001\"/></gpu></pci></cpu></system>"
    ));
    assert!(warnings.is_empty(), "{warnings:?}");
    assert_eq!(bandwidths(&graph, EdgeKind::C2c), [440.0]);
    let named = |a: &str, b: &str, width, links| (a.to_owned(), b.to_owned(), width, links);
    assert_eq!(
        edges(&graph, EdgeKind::NvLink),
        [named("GPU0", "NVSwitch", 370.8, 18), named("GPU1", "NUMA0", 60.0, 3)]
    );
    let lowest = graph.nodes.iter().find_map(|node| match node.kind {
        NodeKind::NvSwitch(bus_id) => Some(bus_id.to_string()),
        _ => None,
    });
    assert_eq!(lowest.as_deref(), Some("0000:98:00.0"));
}

#[test]
fn numa_nodes_are_linked_by_package_and_distance() {
    let cpu = |id: u32, rest: &str| {
        format!("<cpu numaid=\"{id}\" affinity=\"{:x}\" {AMD} {rest}/>", 1 << id)
    };
    let system = |cpus: &[String]| format!("<system version=\"1\">{}</system>", cpus.concat());
    // Without distances: each with each.
    let (mesh, _) = graph(&system(&[cpu(0, ""), cpu(1, ""), cpu(2, "")]));
    assert_eq!(bandwidths(&mesh, EdgeKind::Socket), [16.0, 16.0, 16.0]);
    // Two of one package.
    let package = |number: u32| format!("package=\"{number}\"");
    let (packages, _) =
        graph(&system(&[cpu(0, &package(0)), cpu(1, &package(0)), cpu(2, &package(1))]));
    assert_eq!(bandwidths(&packages, EdgeKind::Die), [47.0]);
    assert_eq!(bandwidths(&packages, EdgeKind::Socket).len(), 2);
    // A square: opposite corners have two neighbours that are nearer.
    let far = |text: &str| format!("distances=\"{text}\"");
    let (square, _) = graph(&system(&[
        cpu(0, &far("0:10 1:21 2:31 3:21")),
        cpu(1, &far("0:21 1:10 2:21 3:31")),
        cpu(2, &far("0:31 1:21 2:10 3:21")),
        cpu(3, &far("0:21 1:31 2:21 3:10")),
    ]));
    let pairs: Vec<_> =
        edges(&square, EdgeKind::Socket).into_iter().map(|(a, b, ..)| (a, b)).collect();
    let named = |a: u32, b: u32| (format!("NUMA{a}"), format!("NUMA{b}"));
    assert_eq!(pairs, [named(0, 1), named(0, 3), named(1, 2), named(2, 3)]);
    // Memory without processors carries nobody's traffic.
    let memory = "<cpu numaid=\"8\"/>".to_owned();
    let (with_memory, _) = graph(&system(&[cpu(0, ""), memory, cpu(1, "")]));
    assert_eq!(with_memory.numa_nodes().len(), 3);
    assert_eq!(bandwidths(&with_memory, EdgeKind::Socket).len(), 1);
}

#[test]
fn sockets_by_processor() {
    let bandwidth = |attributes: &str| {
        let text = format!(
            "<system version=\"1\"><cpu numaid=\"0\" {attributes}/><cpu numaid=\"1\" {attributes}/></system>"
        );
        let (graph, warnings) = graph(&text);
        (bandwidths(&graph, EdgeKind::Socket)[0], warnings.len())
    };
    let intel = |model: u32| {
        format!("arch=\"x86_64\" vendor=\"GenuineIntel\" familyid=\"6\" modelid=\"{model}\"")
    };
    assert_eq!(bandwidth(&intel(79)), (6.0, 0));
    assert_eq!(bandwidth(&intel(85)), (10.0, 0));
    assert_eq!(bandwidth(&intel(143)), (22.0, 0));
    assert_eq!(bandwidth(&intel(0xcf)), (40.0, 0));
    assert_eq!(bandwidth(&intel(0xad)), (40.0, 0));
    assert_eq!(bandwidth(AMD), (16.0, 0));
    assert_eq!(bandwidth("arch=\"ppc64\" vendor=\"IBM\""), (32.0, 0));
    assert_eq!(bandwidth("arch=\"x86_64\" vendor=\"Nobody\""), (10.0, 2));
}

#[test]
fn functions_of_a_card_share_its_link() {
    let function = |n: u32| {
        format!(
            "<pci busid=\"0:1:0.{n}\" link_speed=\"8 GT/s\" link_width=\"16\"><nic>\
             <net name=\"mlx5_{n}\" dev=\"{n}\" speed=\"100000\" latency=\"1.5\"/></nic></pci>"
        )
    };
    let (graph, _) = graph(&format!(
        "<system version=\"1\"><cpu numaid=\"0\" {AMD}>{}{}</cpu></system>",
        function(0),
        function(1)
    ));
    assert_eq!(edges(&graph, EdgeKind::Pcie).len(), 1);
    assert_eq!(bandwidths(&graph, EdgeKind::Net), [12.5, 12.5]);
    assert!(graph.edges.iter().any(|edge| edge.latency_ns == 1500));
}

#[test]
fn parts_of_one_switch_reach_each_other_inside() {
    let switch = |n: u32, peer: u32| {
        format!(
            "<pci busid=\"0:{n}:0.0\" class=\"0x060400\" link_speed=\"16 GT/s\" link_width=\"16\">\
             <pcilink target=\"0:{peer}:0.0\"/><pci busid=\"0:{n}1:0.0\" link_speed=\"16 GT/s\" \
             link_width=\"16\"><gpu dev=\"{n}\" sm=\"80\"/></pci></pci>"
        )
    };
    let (graph, warnings) = graph(&format!(
        "<system version=\"1\"><cpu numaid=\"0\" {AMD}>{}{}{}</cpu></system>",
        switch(1, 2),
        switch(2, 1),
        switch(3, 4)
    ));
    assert_eq!(bandwidths(&graph, EdgeKind::Pcie).iter().filter(|&&b| b == 5000.0).count(), 1);
    assert_eq!(
        warnings,
        ["0000:03:00.0: has a link with 0000:04:00.0, which is not here: left out"]
    );
    let gpus = graph.gpus();
    assert_eq!(graph.path(gpus[0], gpus[1]).expect("a path").hops(), 3);
}
