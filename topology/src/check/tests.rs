//! A healthy machine with one thing wrong at a time.

use crate::{Graph, Machine, Severity, check};

/// Two NUMA nodes; below each a switch with two GPUs and a card.
fn machine(change: impl Fn(String) -> String) -> Machine {
    let pci = |bus: u32, content: &str| {
        format!(
            "<pci busid=\"0:{bus:02x}:0.0\" link_speed=\"32 GT/s\" link_width=\"16\" \
             max_link_speed=\"32 GT/s\" max_link_width=\"16\">{content}</pci>\n"
        )
    };
    let gpu = |n: u32| {
        let links = "<nvlink target=\"0:99:0.0\" count=\"18\" tclass=\"0x068000\"/>";
        pci(0x10 + n, &format!("<gpu dev=\"{n}\" sm=\"90\">{links}</gpu>"))
    };
    let card = |n: u32| {
        let speeds = "speed=\"400000\" max_speed=\"400000\" state=\"up\"";
        pci(0x20 + n, &format!("<nic><net name=\"mlx5_{n}\" dev=\"{n}\" {speeds}/></nic>"))
    };
    let numa = |n: u32| {
        let switch = pci(0x30 + n, &[gpu(2 * n), gpu(2 * n + 1), card(n)].concat());
        format!("<cpu numaid=\"{n}\" vendor=\"GenuineIntel\">{switch}</cpu>")
    };
    let text = format!("<system version=\"1\">{}{}</system>", numa(0), numa(1));
    Machine::from_xml(&change(text)).expect("a machine")
}

fn findings(from: &str, to: &str) -> Vec<(Severity, String)> {
    let machine = machine(|text| {
        assert!(text.contains(from), "{from}\n{text}");
        text.replacen(from, to, 1)
    });
    let found = check(&machine, &Graph::new(&machine).0);
    assert!(found.iter().all(|finding| !finding.remedy.is_empty()));
    found.into_iter().map(|f| (f.severity, format!("{}: {}", f.subject, f.message))).collect()
}

fn only(severity: Severity, text: &str) -> Vec<(Severity, String)> {
    vec![(severity, text.into())]
}

#[test]
fn a_healthy_machine_has_no_findings() {
    assert_eq!(findings("<system", "<system"), []);
}

#[test]
fn an_idle_gpu_is_a_note() {
    let found =
        findings("busid=\"0:12:0.0\" link_speed=\"32", "busid=\"0:12:0.0\" link_speed=\"2.5");
    assert_eq!(found, only(Severity::Note, "GPU2 (0000:12:00.0): PCIe at 2.5 of 32 GT/s"));
}

#[test]
fn missing_nvlinks_are_counted() {
    let found = findings("count=\"18\"", "count=\"17\"");
    let expected = "GPU0 (0000:10:00.0): 17 links with GPUs or switches; others have 18";
    assert_eq!(found, only(Severity::Warning, expected));
}

#[test]
fn a_port_that_is_down_leaves_gpus_without_one() {
    let found = findings("state=\"up\"", "state=\"down\"");
    assert_eq!(found[0], (Severity::Failure, "port mlx5_0: down: no traffic can use it".into()));
    let far: Vec<_> = found[1..].iter().map(|(_, text)| text.as_str()).collect();
    assert_eq!(far.len(), 2, "{far:?}");
    assert!(far[0].starts_with("GPU0: its nearest port is SYS"), "{far:?}");
}

#[test]
fn a_missing_card_makes_halves_unequal() {
    let found = findings(
        "<net name=\"mlx5_1\" dev=\"1\" speed=\"400000\" max_speed=\"400000\" state=\"up\"/>",
        "",
    );
    let texts: Vec<_> = found.iter().map(|(_, text)| text.as_str()).collect();
    assert!(texts.contains(&"NUMA nodes: unequal numbers of ports: NUMA0 1, NUMA1 0"), "{texts:?}");
    let switches = "PCIe switches: unequal numbers of ports: 0000:30:00.0 1, 0000:31:00.0 0";
    assert!(texts.contains(&switches), "{texts:?}");
    assert_eq!(texts.iter().filter(|text| text.contains("nearest port")).count(), 2, "{texts:?}");
}

#[test]
fn an_infiniband_port_that_is_slower_than_its_like_is_found() {
    let of = |layer: &str| {
        let machine = machine(|text| {
            text.replace("busid=\"0:2", "vendor=\"0x15b3\" device=\"0x1021\" busid=\"0:2")
                .replace("state=\"up\"", &format!("state=\"up\" link_layer=\"{layer}\""))
                .replacen("speed=\"400000\" max_speed=\"400000\"", "speed=\"100000\"", 1)
        });
        let found = check(&machine, &Graph::new(&machine).0);
        found.into_iter().map(|f| format!("{}: {}", f.subject, f.message)).collect::<Vec<_>>()
    };
    assert_eq!(of("infiniband"), ["port mlx5_0: 100 Gbit/s; others of its kind have 400"]);
    assert_eq!(of("ethernet"), [""; 0]);
}

#[test]
fn an_ethernet_port_without_a_cable_is_no_failure() {
    let severity = |layer: &str| {
        let to = format!("state=\"down\" link_layer=\"{layer}\"");
        let found = findings("state=\"up\"", &to);
        found
            .into_iter()
            .find(|(_, text)| text.starts_with("port mlx5_0: down"))
            .map(|found| found.0)
    };
    assert_eq!(severity("ethernet"), Some(Severity::Note));
    assert_eq!(severity("infiniband"), Some(Severity::Failure));
}
