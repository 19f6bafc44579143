//! What is shown of a machine, in every way.

use std::collections::BTreeMap;

use roxmltree::Document;

use super::program::{Folder, SAMPLES, document, printed, sample};

#[test]
fn the_tree_has_every_device_below_what_it_hangs_on() {
    let tree = printed(&format!("topo --xml {}", sample("card-at-x8.xml")), 0);
    let lines: Vec<&str> = tree.lines().collect();
    let expected = [
        "NUMA0: processors 0-7, AuthenticAMD family 25 model 17",
        "└─ bridge 0000:01:00.0: 16 GT/s x16 (of 32 GT/s x16), 31.5 GB/s",
        "   ├─ GPU0 0000:02:00.0: 32 GT/s x16, 63.0 GB/s",
        "   └─ card 0000:03:00.0: 8 GT/s x8 (of 16 GT/s x16), 7.9 GB/s",
        "      ├─ port mlx5_0: 100 Gbit/s (of 200 Gbit/s), number 1 of its device, InfiniBand, up",
        "      └─ port mlx5_1: 10 Gbit/s (of 200 Gbit/s), number 2 of its device, InfiniBand, down",
    ];
    assert!(lines[0].ends_with("card-at-x8.xml: 1 NUMA node, 1 GPU, 2 network ports"), "{tree}");
    assert_eq!(lines[1..=expected.len()], expected);
}

#[test]
fn the_tree_names_links_of_gpus_and_between_numa_nodes() {
    let tree = printed(&format!("topo --xml {}", sample("nvlink-pairs.xml")), 0);
    for line in
        ["├─ to NUMA1: 16.0 GB/s, between packages", "│  └─ to GPU1: NVLink x12, 240.0 GB/s"]
    {
        assert!(tree.contains(line), "{line}: {tree}");
    }
    let tree = printed(&format!("topo --xml {}", sample("nvswitch-8gpu-8nic.xml")), 0);
    assert_eq!(tree.matches("to NVSwitch: NVLink x18, 370.8 GB/s").count(), 8, "{tree}");
}

#[test]
fn the_table_is_that_of_nvidia_smi() {
    let table = printed(&format!("topo -m --xml {}", sample("nvlink-pairs.xml")), 0);
    let rows: Vec<Vec<&str>> =
        table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0][..5], ["GPU0", "GPU1", "GPU2", "GPU3", "NIC0"]);
    assert_eq!(rows[1][..6], ["GPU0", "X", "NV12", "SYS", "SYS", "PHB"]);
    assert_eq!(rows[4][..6], ["GPU3", "SYS", "SYS", "NV12", "X", "SYS"]);
    assert!(table.contains("NIC0: mlx5_0"), "{table}");
}

#[test]
fn what_is_written_is_read_again_as_the_same() {
    let folder = Folder::new("again");
    for name in SAMPLES {
        let file = sample(name);
        let json = printed(&format!("topo --xml {file} --json"), 0);
        let copy = folder.file("copy.json", json.as_bytes());
        assert_eq!(printed(&format!("topo --xml {copy} --json"), 0), json, "{name}");
        let xml = folder.path("copy.xml");
        assert_eq!(printed(&format!("topo --xml {file} --write-xml {xml}"), 0), "");
        let text = std::fs::read_to_string(&xml).expect("it was written");
        assert_eq!(printed(&format!("topo --xml {file} --write-xml -"), 0), text, "{name}");
        for copy in [copy, xml] {
            assert_eq!(printed(&format!("topo --diff {file} {copy}"), 0), "no difference\n");
        }
    }
}

#[test]
fn the_same_machine_is_shown_in_the_same_words() {
    for name in SAMPLES {
        for view in
            ["", "-m", "--json", "--write-xml -", "--svg -", "--explain", "--explain --json"]
        {
            let arguments = format!("topo --xml {} {view}", sample(name));
            assert_eq!(printed(&arguments, 0), printed(&arguments, 0), "{arguments}");
        }
    }
}

#[test]
fn the_drawing_has_every_name_once() {
    for name in SAMPLES {
        let machine = document(&format!("topo --xml {} --json", sample(name)), 0);
        let drawing = printed(&format!("topo --xml {} --svg -", sample(name)), 0);
        let picture = Document::parse(&drawing).expect("well-formed XML");
        let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
        for text in picture.descendants().filter(|node| node.has_tag_name("text")) {
            *seen.entry(text.text().unwrap_or_default()).or_default() += 1;
        }
        for node in machine["graph"]["nodes"].as_array().expect("nodes") {
            let node = node["name"].as_str().expect("a name");
            assert_eq!(seen.get(node), Some(&1), "{name}: {node} in {seen:?}");
        }
    }
}

#[test]
fn findings_say_what_to_do_and_a_failure_is_the_status() {
    let found = printed(&format!("topo --check --xml {}", sample("card-at-x8.xml")), 1);
    for line in [
        "failure  port mlx5_1: down",
        "warning  card 0000:03:00.0 (mlx5_0, mlx5_1): PCIe x8 of x16",
        "warning  port mlx5_0: 100 of 200 Gbit/s",
        "         try: reseat it",
        "# 1 failure, ",
    ] {
        assert!(found.contains(line), "{line}: {found}");
    }
    let findings = document(&format!("topo --check --json --xml {}", sample("card-at-x8.xml")), 1);
    assert_eq!(findings[0]["severity"], "failure");
    let found = printed(&format!("topo --check --xml {}", sample("nvswitch-8gpu-8nic.xml")), 0);
    assert!(found.ends_with("# 0 failures, 0 warnings, 0 notes\n"), "{found}");
}

/// One GPU of four has a link of a quarter of the others', and every ring goes through it.
#[test]
fn a_link_that_halves_the_rings_is_found() {
    let folder = Folder::new("narrow");
    let machine = |width: u32| {
        let gpu = |dev: u32, width: u32| {
            format!(
                r#"<pci busid="0000:1{dev}:00.0" class="0x030200" link_speed="16 GT/s" link_width="{width}">
                   <gpu dev="{dev}" sm="80"/></pci>"#
            )
        };
        let gpus: String = (0..4).map(|dev| gpu(dev, if dev == 2 { width } else { 16 })).collect();
        let text = format!(
            r#"<system version="1"><cpu numaid="0" affinity="ff" arch="x86_64" vendor="AuthenticAMD">
               <pci busid="0000:01:00.0" class="0x060400" link_speed="16 GT/s" link_width="16">
               {gpus}</pci></cpu></system>"#
        );
        folder.file("machine.xml", text.as_bytes())
    };
    let found = printed(&format!("topo --check --xml {}", machine(4)), 0);
    assert!(found.contains("warning  rings of all GPUs: PCIe "), "{found}");
    assert!(found.contains("GPU2"), "{found}");
    assert!(
        found.contains("limits them to 7.9 GB/s; without that they would have 31.5 GB/s"),
        "{found}"
    );
    let found = printed(&format!("topo --check --xml {}", machine(16)), 0);
    assert!(!found.contains("rings of all GPUs"), "{found}");
}

#[test]
fn differences_are_words_and_a_status() {
    let (pairs, narrow) = (sample("nvlink-pairs.xml"), sample("card-at-x8.xml"));
    let text = printed(&format!("topo --diff {pairs} {narrow}"), 1);
    assert!(text.contains("NUMA1: only in the first"), "{text}");
    let list = document(&format!("topo --json --diff {pairs} {narrow}"), 1);
    assert_eq!(list.as_array().expect("a list").len(), text.lines().count());
    assert_eq!(document(&format!("topo --json --diff {pairs} {pairs}"), 0), serde_json::json!([]));
}

#[test]
fn rings_are_explained() {
    let explained = printed(&format!("topo --explain --xml {}", sample("nvlink-pairs.xml")), 0);
    for line in
        ["Rings of GPU0 GPU1 GPU2 GPU3\n  channel 0: ", "limited by ", "\nTree\n", "\nPorts\n"]
    {
        assert!(explained.contains(line), "{line}: {explained}");
    }
    assert!(explained.contains("GPU0 uses mlx5_0 (PHB): "), "{explained}");
    let document =
        document(&format!("topo --explain --json --xml {}", sample("nvlink-pairs.xml")), 0);
    // The link between the sockets carries all rings, once each way.
    assert_eq!(document["rings_bytes_per_s"], 16e9);
    assert_eq!(document["bound_bytes_per_s"], 16e9);
    assert!(document["limited_by"].as_str().expect("words").contains("NUMA0"), "{document}");
    assert_eq!(document["rails"], serde_json::json!([["mlx5_0"]]));
}

#[test]
fn rings_through_two_hosts_are_explained() {
    let (one, other) = (sample("nvlink-pairs.xml"), sample("nvswitch-8gpu-8nic.xml"));
    let explained = printed(&format!("topo --explain --xml {one},{other}"), 0);
    for part in ["nvlink-pairs: ", "nvswitch-8gpu-8nic: ", "channel 0: ", "in by mlx5_0", "total: "]
    {
        assert!(explained.contains(part), "{part}: {explained}");
    }
}
