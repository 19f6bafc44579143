//! What is refused, with which words, and what is taken with a warning.

use std::time::Instant;

use crate::{Error, GpuLinkKind, Machine};

/// A machine with this in its only NUMA node.
fn with(content: &str) -> Result<Machine, Error> {
    Machine::from_xml(&format!(
        "<system version=\"1\">\n<cpu numaid=\"0\">\n{content}\n</cpu>\n</system>"
    ))
}

fn warnings(content: &str) -> Vec<String> {
    let machine = with(content).expect("a machine");
    machine.warnings.iter().map(|w| format!("{}: {}", w.subject, w.message)).collect()
}

#[test]
fn errors_say_where_what_and_what_was_expected() {
    let cases = [
        (
            "<pci busid=\"0000:1a\"/>",
            "line 3, column 1, <pci>: busid=\"0000:1a\": expected a bus id, as 0000:1a:00.0",
        ),
        ("<pci/>", "line 3, column 1, <pci>: no busid: expected a bus id, as 0000:1a:00.0"),
        (
            "<pci busid=\"0:1:0.0\" link_speed=\"fast\"/>",
            "line 3, column 1, <pci>: link_speed=\"fast\": expected a PCIe speed, as \
             \"16.0 GT/s PCIe\" or \"16 GT/s\"",
        ),
        (
            "<nic>\n  <net name=\"eth0\" speed=\"1e5\"/></nic>",
            "line 4, column 3, <net>: speed=\"1e5\": expected a whole number",
        ),
        (
            "<pci busid=\"0:1:0.0\" link_width=\"99999999999\"/>",
            "line 3, column 1, <pci>: link_width=\"99999999999\": expected a smaller number",
        ),
        ("<gpu dev=\"0\"/>", "line 3, column 1, <gpu>: found in <cpu>, expected in <pci>"),
        (
            "<pci busid=\"0:1:0.0\"><gpu dev=\"0\"/><gpu dev=\"1\"/></pci>",
            "line 3, column 36, <gpu>: the second <gpu> at 0000:01:00.0, expected one",
        ),
        ("</pci>", "line 3, column 1: expected 'cpu' tag, not 'pci'"),
        ("<pci busid=\"0:1:0.0\">", "line 4, column 1: expected 'pci' tag, not 'cpu'"),
    ];
    for (content, expected) in cases {
        assert_eq!(with(content).expect_err(content).to_string(), expected);
    }
}

#[test]
fn other_documents_are_refused() {
    let cases = [
        ("", "line 1, column 1: expected <system>"),
        ("<topology/>", "line 1, column 1, <topology>: expected <system>"),
        ("<system version=\"1\">\n<cpu>", "line 2, column 6: the file ends within an element"),
        (
            "<!-- a -->\n<!DOCTYPE x []><system/>",
            "line 2, column 1: a document type: expected none",
        ),
        (
            "<system xmlns=\"a\"/>",
            "line 1, column 9: xmlns: descriptions of machines have no namespaces",
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(Machine::from_xml(text).expect_err(text).to_string(), expected);
    }
}

#[test]
fn what_is_too_large_is_refused_in_time() {
    let deep = |levels: usize| {
        format!("{}{}", "<pci busid=\"0:1:0.0\">".repeat(levels), "</pci>".repeat(levels))
    };
    assert!(with(&deep(60)).is_ok());
    let error = with(&deep(70)).expect_err("too deep").to_string();
    assert!(error.contains("nested deeper than 64"), "{error}");
    let start = Instant::now();
    let error = with(&deep(90_000)).expect_err("much too deep").to_string();
    assert!(error.contains("nested deeper than 64"), "{error}");
    let error = with(&"<a/>".repeat(300_000)).expect_err("too many elements").to_string();
    assert!(error.contains("more than 200000"), "{error}");
    let attributes: String = (0..100_000).map(|i| format!(" a{i}=\"\"")).collect();
    let error = with(&format!("<pci{attributes}/>")).expect_err("too many attributes").to_string();
    assert!(error.contains("fewer attributes"), "{error}");
    let error = with(&" ".repeat(17 << 20)).expect_err("too long");
    assert!(matches!(error, Error::TooLong { .. }));
    let gpu = |i: usize| format!("<pci busid=\"{i:x}:1:0.0\"><gpu dev=\"{i}\"/></pci>");
    let gpus: String = (0..257).map(gpu).collect();
    let error = with(&gpus).expect_err("too many GPUs").to_string();
    assert!(error.contains("more than 256"), "{error}");
    // Each of many warnings would otherwise look for its line from the start.
    let machine = with(&"<a/>".repeat(90_000)).expect("odd, and a machine");
    assert_eq!(machine.warnings.len(), 101);
    assert!(start.elapsed().as_secs() < 20, "{:?}", start.elapsed());
}

#[test]
fn unknown_things_are_warnings() {
    assert_eq!(
        warnings("<fan speed=\"1\"/>"),
        ["line 3, <fan>: unknown element: left out with what is in it"]
    );
    assert_eq!(
        warnings("<pci busid=\"0:1:0.0\" colour=\"red\"/>"),
        ["line 3, <pci>: unknown attribute \"colour\": left out"]
    );
    assert_eq!(
        warnings("<nic><net name=\"a\" dev=\"0\"/><net name=\"b\" dev=\"0\"/></nic>"),
        ["line 3, <net>: dev 0 again: numbered 1"]
    );
    assert_eq!(
        warnings("<pci busid=\"0:1:0.0\" link_width=\"255\"/>"),
        ["line 3, <pci>: link_width 255, of at most 32: taken as unknown"]
    );
    let text =
        "<system version=\"3\"><cpu numaid=\"1\" arch=\"m68k\"/><cpu numaid=\"1\"/></system>";
    assert_eq!(Machine::from_xml(text).expect("a machine").warnings.len(), 3);
}

#[test]
fn figures_are_taken_in_all_their_forms() {
    let speed = |text: &str| {
        let machine = with(&format!("<pci busid=\"0:1:0.0\" link_speed=\"{text}\"/>"));
        machine.expect(text).devices()[0].device.link.map(|link| link.gigatransfers_per_s)
    };
    for (text, expected) in [
        ("8 GT/s", Some(8.0)),
        ("16.0 GT/s PCIe", Some(16.0)),
        ("64.0 GT/s", Some(64.0)),
        ("2.5GT/s", Some(2.5)),
        ("", None),
        ("Unknown", None),
        ("Unknown speed", None),
    ] {
        assert_eq!(speed(text), expected, "{text}");
    }
    let machine = with(
        "<pci busid=\"fffffff:ff:ff.0\" class=\"030200\"><gpu dev=\"-1\" sm=\"90\" rank=\"-1\" gdr=\"\">\
         <c2c bw=\"44712\" count=\"10\"/><nvlink target=\"0:2:0.0\" count=\"3\"/></gpu></pci>\
         <nic><net name=\"eth0\" dev=\"4\" speed=\"-1\" port=\"-1\"/></nic>",
    )
    .expect("a machine");
    let placed = &machine.gpus()[0];
    assert_eq!(placed.place.device.bus_id.to_string(), "fffffff:ff:ff.0");
    assert_eq!(placed.place.device.class, 0x030200);
    let gpu = placed.gpu;
    assert_eq!((gpu.index, gpu.rank, gpu.gpu_direct_rdma), (0, None, None));
    assert_eq!((gpu.links[0].kind, gpu.links[0].count), (GpuLinkKind::C2c, 10));
    assert_eq!(gpu.links[0].bandwidth_bytes_per_s, Some(44.712e9));
    assert_eq!(gpu.links[1].target.expect("a target").to_string(), "0000:02:00.0");
    let ports = machine.ports();
    assert_eq!((ports[0].port.index, ports[0].port.speed_mbit_per_s), (4, None));
}

#[test]
fn the_version_is_that_of_the_gpus_makers() {
    let gpu = |attributes: &str| {
        with(&format!("<pci busid=\"0:1:0.0\"><gpu dev=\"0\" {attributes}/></pci>"))
            .expect("a machine")
            .to_xml()
    };
    assert!(gpu("sm=\"90\"").starts_with("<system version=\"1\">"));
    assert!(gpu("gcn=\"gfx942\"").starts_with("<system version=\"2\">"));
}
