//! Drawings are well-formed, whole, and the same every time.

use std::collections::BTreeMap;

use roxmltree::Document;

use crate::search::rings;
use crate::{Graph, Machine, NodeKind, svg};

/// Our own files, and how many boxes each has: NUMA nodes, bridges, GPUs and cards, and NVSwitches.
const FILES: [(&str, &str, usize); 4] = [
    ("flat", include_str!("../../tests/files/flat-virtual-machine.xml"), 6),
    ("pairs", include_str!("../../tests/files/nvlink-pairs.xml"), 7),
    ("x8", include_str!("../../tests/files/card-at-x8.xml"), 4),
    ("switched", include_str!("../../tests/files/nvswitch-8gpu-8nic.xml"), 2 + 4 + 8 + 8 + 1),
];

fn drawing(text: &str) -> (Graph, String) {
    let machine = Machine::from_xml(text).expect("a machine");
    let (graph, _) = Graph::new(&machine);
    let set = rings(&graph, &graph.gpus()).expect("rings");
    let drawing = svg(&machine, &graph, Some(&set));
    assert_eq!(drawing, svg(&machine, &graph, Some(&set)), "the same every time");
    (graph, drawing)
}

#[test]
fn every_part_has_its_name_once_and_its_box() {
    for (name, text, boxes) in FILES {
        let (graph, drawing) = drawing(text);
        let document = Document::parse(&drawing).expect("well-formed XML");
        let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
        for text in document.descendants().filter(|node| node.has_tag_name("text")) {
            *seen.entry(text.text().unwrap_or_default()).or_default() += 1;
        }
        for node in &graph.nodes {
            // What a card and a bridge are called is their bus id.
            assert_eq!(seen.get(node.name.as_str()), Some(&1), "{name}: {}", node.name);
        }
        let rectangles = document.descendants().filter(|node| node.has_tag_name("rect")).count();
        assert_eq!(rectangles, boxes + 1, "{name}: and the ground");
    }
}

#[test]
fn boxes_are_inside_the_picture_and_beside_or_inside_each_other() {
    for (name, text, _) in FILES {
        let (_, drawing) = drawing(text);
        let document = Document::parse(&drawing).expect("well-formed XML");
        let rectangle = |node: roxmltree::Node| {
            let size = |name| node.attribute(name).map_or(0.0, |text| text.parse().expect(name));
            let [x, y, width, height]: [f64; 4] = ["x", "y", "width", "height"].map(size);
            [x, y, x + width, y + height]
        };
        let nodes = document.descendants().filter(|node| node.has_tag_name("rect"));
        let all: Vec<[f64; 4]> = nodes.map(rectangle).collect();
        for (i, a) in all.iter().enumerate() {
            for b in &all[i + 1..] {
                let apart = a[2] <= b[0] || b[2] <= a[0] || a[3] <= b[1] || b[3] <= a[1];
                let inside = a[0] <= b[0] && a[1] <= b[1] && b[2] <= a[2] && b[3] <= a[3];
                assert!(apart || inside, "{name}: {a:?} and {b:?}");
            }
        }
    }
}

#[test]
fn rings_are_lines_of_their_colours_and_broken_where_there_is_no_link() {
    let paths = |text: &str, what: &str| {
        let (_, drawing) = drawing(text);
        drawing.lines().filter(|line| line.starts_with("<path") && line.contains(what)).count()
    };
    // A ring of four over the pairs' bridges crosses between the pairs twice, by PCIe.
    let pairs = FILES[1].1;
    let hops = paths(pairs, super::RING_COLORS[0]);
    assert_eq!((hops, paths(pairs, "dasharray")), (4, 2));
    // NVLink in two pairs, and the link between the sockets.
    assert_eq!(paths(pairs, "#d3d3d3"), 2);
    assert_eq!(paths(pairs, "#c9bddf"), 1);
    // Over the switches a ring of eight needs no PCIe.
    let switched = FILES[3].1;
    let (_, drawing) = drawing(switched);
    let first = drawing
        .lines()
        .filter(|line| line.starts_with("<path") && line.contains(super::RING_COLORS[0]));
    assert_eq!(first.clone().count(), 8);
    assert_eq!(first.filter(|line| line.contains("dasharray")).count(), 0);
}

#[test]
fn names_may_be_anything() {
    let mut machine = Machine::from_xml(FILES[2].1).expect("a machine");
    machine.host = "<&>\"'\u{1}\u{ffff}\u{1f600}".into();
    machine.numa_nodes[0].vendor = "x".repeat(1000);
    let (graph, _) = Graph::new(&machine);
    let drawing = svg(&machine, &graph, None);
    Document::parse(&drawing).expect("well-formed XML");
    assert!(!drawing.contains(&"x".repeat(100)), "long texts are cut");
}

/// Some providers' base files say where devices are, and nothing else.
#[test]
fn devices_of_which_nobody_says_what_they_are_have_a_box() {
    let text = r#"<system version="1"><cpu numaid="0"><pci busid="0000:00:16.0"/></cpu>
        <cpu numaid="1"><pci busid="0000:00:1a.0"/><pci busid="0000:00:15.0"/></cpu></system>"#;
    let machine = Machine::from_xml(text).expect("a machine");
    let drawing = svg(&machine, &Graph::new(&machine).0, None);
    for name in ["NUMA0", "NUMA1", "0000:00:16.0", "0000:00:1a.0", "0000:00:15.0"] {
        assert_eq!(drawing.matches(&format!(">{name}<")).count(), 1, "{name}: {drawing}");
    }
    assert_eq!(drawing.matches("<rect").count(), 1 + 2 + 3, "the ground, the nodes, the devices");
}

#[test]
fn nothing_is_a_drawing_too() {
    let machine = Machine::default();
    let (graph, _) = Graph::new(&machine);
    let drawing = svg(&machine, &graph, None);
    Document::parse(&drawing).expect("well-formed XML");
    assert!(!graph.nodes.iter().any(|node| matches!(node.kind, NodeKind::Gpu { .. })));
}
