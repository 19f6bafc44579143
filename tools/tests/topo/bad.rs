//! What cannot be read, and commands that make no sense.

use super::program::{Folder, printed, refused, sample};

#[test]
fn files_that_describe_no_machine_are_refused_by_name() {
    let folder = Folder::new("bad");
    let deep = "{\"machine\":".repeat(100_000);
    let cases: [(&str, &[u8], &str); 9] = [
        ("empty.xml", b"", "expected <system>"),
        ("words.xml", b"hello", "line 1"),
        ("cut.xml", b"<system version=\"1\"><cpu numaid=\"0\">", "ends within an element"),
        ("rings.xml", b"<graphs version=\"1\"/>", "NCCL_GRAPH_FILE"),
        ("entities.xml", b"<!DOCTYPE x [<!ENTITY a \"b\">]><system/>", "document type"),
        ("bytes.xml", b"\xff\xfe\x00", "UTF-8"),
        ("cut.json", b"{\"machine\": {\"host\": \"a\"", "line 1"),
        ("other.json", b"{\"answer\": 42}", "machine"),
        ("deep.json", deep.as_bytes(), "line 1"),
    ];
    for (name, text, said) in cases {
        let path = folder.file(name, text);
        let readers = [
            format!("topo --xml {path}"),
            format!("topo --diff {path} {path}"),
            format!("sim all-reduce --bytes 1M --topology {path}"),
        ];
        for arguments in readers {
            let stderr = refused(&arguments);
            assert!(stderr.contains(&path) && stderr.contains(said), "{name}: {stderr}");
        }
    }
    let stderr = refused(&format!("topo --xml {}", folder.path("nothing.xml")));
    assert!(stderr.contains("nothing.xml: cannot be read"), "{stderr}");
    let stderr = refused(&format!("topo --sysfs {}", folder.path("nowhere")));
    assert!(stderr.contains("nowhere holds neither devices"), "{stderr}");
}

/// What cannot be said in XML cannot be said in JSON.
#[test]
fn absurd_figures_in_json_are_refused() {
    let folder = Folder::new("absurd");
    let json = printed(&format!("topo --xml {} --json", sample("nvlink-pairs.xml")), 0);
    let absurd = json.replace("\"gigatransfers_per_s\":16.0", "\"gigatransfers_per_s\":-16.0");
    assert_ne!(absurd, json);
    let path = folder.file("absurd.json", absurd.as_bytes());
    let output = super::program::ringtree(&format!("topo --xml {path} --explain"));
    // Refused, or taken for unknown; never a crash.
    assert!(matches!(output.status.code(), Some(0 | 2)), "{:?}", output.status);
}

#[test]
fn options_that_contradict_each_other_are_refused() {
    let file = sample("nvlink-pairs.xml");
    for (arguments, said) in [
        (format!("--xml {file} -m --explain"), "exclude each other"),
        (format!("--xml {file} --json -m"), "exclude each other"),
        (format!("--xml {file} --visible"), "exclude each other"),
        (format!("--xml {file} --diff {file} {file}"), "exclude each other"),
        (format!("--diff {file}"), "2 values required"),
        ("--complete".into(), "missing: --xml"),
        (format!("--xml {file} --sysfs /"), "add --complete"),
        (format!("--xml {file},{file}"), "add --explain"),
        (format!("--xml {file},{file} -m"), "add --explain"),
        (format!("--xml {file},{file} --explain --without GPU0"), "add --explain"),
        (format!("--xml {file} --svg /nowhere/x.svg"), "/nowhere/x.svg: cannot be written"),
        (format!("--xml {file} --write-xml /nowhere/x.xml"), "/nowhere/x.xml: cannot be written"),
    ] {
        let stderr = refused(&format!("topo {arguments}"));
        assert!(stderr.contains(said), "{arguments}: {stderr}");
    }
}

#[test]
fn base_files_say_what_they_lack() {
    let folder = Folder::new("base");
    let base =
        br#"<system version="1"><cpu numaid="0" affinity="ff" arch="x86_64" vendor="AuthenticAMD">
      <pci busid="ffff:ff:01.0" class="0x060400" link_speed="16 GT/s" link_width="16">
        <pci busid="0001:00:00.0" class="0x030200"/><pci busid="0002:00:00.0" class="0x020700"/>
      </pci></cpu></system>"#;
    let path = folder.file("base.xml", base);
    let tree = printed(&format!("topo --xml {path}"), 0);
    assert!(
        tree.contains("a base file: it lacks GPUs, network cards and the links of GPUs"),
        "{tree}"
    );
    assert!(tree.contains("GPU0 0001:00:00.0") && tree.contains("card 0002:00:00.0"), "{tree}");
    let empty = folder.file("empty.xml", br#"<system version="1"><cpu numaid="0"/></system>"#);
    let tree = printed(&format!("topo --xml {empty}"), 0);
    assert!(tree.contains("0 of its 0 PCI devices"), "{tree}");
    for view in ["-m", "--svg -", "--check"] {
        printed(&format!("topo --xml {empty} {view}"), 0);
    }
    let explained = printed(&format!("topo --xml {empty} --explain"), 0);
    assert!(explained.starts_with("neither GPUs nor NUMA nodes with processors"), "{explained}");
}
