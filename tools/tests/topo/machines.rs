//! Real machines' files: what must be found in each. They are in the folder that RINGTREE_TEST_TOPOLOGIES
//! names, or in `shared/topologies` beside the checkout; without it these tests say that they were skipped.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use roxmltree::Document;
use serde_json::Value;

use super::program::{document, printed};
use super::real::folder;

/// With a program built for speed, on a machine that does nothing else, each takes less than 100 ms.
const LONGEST: Duration = Duration::from_secs(if cfg!(debug_assertions) { 10 } else { 1 });

/// A file of that folder, if it is there.
fn real(name: &str) -> Option<String> {
    let path = folder()?.join(name);
    if !path.exists() {
        println!("skipped: there is no {}", path.display());
        return None;
    }
    Some(path.display().to_string())
}

#[test]
fn every_file_is_shown_in_every_way_in_time() {
    let Some(folder) = folder() else { return };
    let mut files: Vec<PathBuf> =
        folder.read_dir().expect("a folder").map(|entry| entry.expect("an entry").path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "xml"));
    files.sort();
    assert!(!files.is_empty());
    for path in files {
        let is_of_rings = path.to_string_lossy().ends_with("-graph.xml");
        for view in ["", "-m", "--svg -", "--explain", "--json"] {
            let arguments = format!("topo --xml {} {view}", path.display());
            if is_of_rings {
                super::program::refused(&arguments);
                continue;
            }
            let start = Instant::now();
            let text = printed(&arguments, 0);
            let took = start.elapsed();
            println!("{took:?} {arguments}");
            assert!(took < LONGEST, "{arguments}: {took:?}");
            assert_eq!(printed(&arguments, 0), text, "{arguments}");
            if view == "--svg -" {
                Document::parse(&text).expect("well-formed XML");
            }
        }
    }
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().expect("a list").iter().map(|n| n.as_f64().expect("a number")).collect()
}

#[test]
fn h100_machines_have_nvlink_everywhere_and_eight_rails() {
    let Some(path) = real("oci-8xH100.xml") else { return };
    let table = printed(&format!("topo -m --xml {path}"), 0);
    for line in table.lines().filter(|line| line.starts_with("GPU")) {
        let cells: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(cells[1..9].iter().filter(|cell| **cell == "NV18").count(), 7, "{line}");
    }
    let explained = document(&format!("topo --explain --json --xml {path}"), 0);
    assert_eq!(explained["rails"].as_array().expect("rails").len(), 8);
    let served = explained["ports"].as_array().expect("ports");
    assert_eq!(served.len(), 8);
    let mut ports: Vec<&str> = Vec::new();
    for row in served {
        let own = row["ports"].as_array().expect("ports");
        assert_eq!(own.len(), 2, "{row}");
        ports.extend(own.iter().map(|port| port.as_str().expect("a name")));
        assert!(["PIX", "PXB"].contains(&row["class"].as_str().expect("a class")), "{row}");
    }
    ports.sort();
    ports.dedup();
    assert_eq!(ports.len(), 16, "no port serves two");
    // All 18 links of a GPU, each of 20.6 GB/s; and what PCIe carries beside them.
    let total = explained["rings_bytes_per_s"].as_f64().expect("a number");
    assert!((370.8e9..400e9).contains(&total), "{total}");
}

#[test]
fn ncv4_crosses_between_its_pairs_twice() {
    let Some(path) = real("azure-ncv4-4xA100-pcie.xml") else { return };
    let table = printed(&format!("topo -m --xml {path}"), 0);
    let rows: Vec<Vec<&str>> = table.lines().map(|l| l.split_whitespace().collect()).collect();
    assert_eq!(rows[1][1..5], ["X", "NV12", "SYS", "SYS"]);
    assert_eq!(rows[2][1..5], ["NV12", "X", "SYS", "SYS"]);
    assert_eq!(rows[3][1..5], ["SYS", "SYS", "X", "NV12"]);
    let explained = document(&format!("topo --explain --json --xml {path}"), 0);
    for ring in explained["rings"].as_array().expect("rings") {
        let order = ring["order"].as_array().expect("an order");
        let pair = |place: usize| {
            let name = order[place % 4].as_str().expect("a name");
            name == "GPU0" || name == "GPU1"
        };
        let crossings = (0..4).filter(|&place| pair(place) != pair(place + 1)).count();
        assert_eq!(crossings, 2, "{ring}");
    }
    let single = printed(&format!("topo --explain --xml {path}"), 0);
    let single = single.lines().find(|line| line.contains("one ring alone")).expect("a line");
    assert!(single.contains("2 by NVLink"), "{single}");
}

/// Each GPU has six links; in rings that use all of them, each is full both ways.
#[test]
fn rings_of_mi100_machines_use_every_link() {
    let Some(path) = real("rccl-8p6l-2nic.xml") else { return };
    let explained = document(&format!("topo --explain --json --xml {path}"), 0);
    let total = explained["rings_bytes_per_s"].as_f64().expect("a number");
    assert!(total >= 6.0 * 24e9 * 0.999, "{total}");
    let rates = explained["rings"].as_array().expect("rings").iter();
    let rates: Vec<f64> = rates.map(|ring| ring["bytes_per_s"].as_f64().expect("a rate")).collect();
    assert!((rates.iter().sum::<f64>() - total).abs() < 1e-6 * total);
    assert!(explained["tree_bytes_per_s"].as_f64().expect("a number") > 0.0);
}

#[test]
fn hosts_that_are_alike_have_the_bandwidth_of_their_ports() {
    let Some(path) = real("oci-8xH100.xml") else { return };
    let two = document(&format!("topo --explain --json --xml {path},{path}"), 0);
    let plan = &two["plan"];
    let share: f64 = numbers(&plan["nics"][0]["share_bytes_per_s"]).iter().sum();
    let total = plan["total_bytes_per_s"].as_f64().expect("a number");
    assert!(total > 0.9 * share && total <= share * 1.001, "{total} of {share}");
}
