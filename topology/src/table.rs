//! The table that people know from `nvidia-smi topo -m`: each GPU and port with each other.

use std::fmt::Write;

use crate::{Graph, Machine, NodeId, NodeKind, PathClass};

/// The classes that exist in a table, with what they mean.
const LEGEND: [(PathClass, &str); 9] = [
    (PathClass::Nvl, "NVLinks, of which there are #, direct or through NVSwitches"),
    (PathClass::Nvb, "NVLink or xgmi through one other GPU"),
    (PathClass::C2c, "link between a GPU and its processor"),
    (PathClass::Pix, "PCIe through at most one switch"),
    (PathClass::Pxb, "PCIe through several switches"),
    (PathClass::P2c, "link between a GPU and its processor, then PCIe"),
    (PathClass::Phb, "PCIe through the host bridges of one NUMA node"),
    (PathClass::Sys, "through several NUMA nodes"),
    (PathClass::Dis, "not connected, or a port that is down"),
];

/// GPUs and ports as rows and columns, the processors and the NUMA node of each row, a legend of the
/// classes that occur, and which port each `NIC` is. Lines end with a newline.
pub fn table(machine: &Machine, graph: &Graph) -> String {
    let (gpus, ports) = (graph.gpus(), graph.ports());
    let mut devices: Vec<(NodeId, String)> = Vec::new();
    devices.extend(gpus.iter().map(|&id| (id, graph.node(id).name.clone())));
    devices.extend(ports.iter().enumerate().map(|(i, &id)| (id, format!("NIC{i}"))));
    if devices.is_empty() {
        return "neither GPUs nor network cards\n".into();
    }
    let mut header = vec![String::new()];
    header.extend(devices.iter().map(|(_, name)| name.clone()));
    header.extend(["CPU Affinity".into(), "NUMA Affinity".into()]);
    let mut rows = vec![header];
    let mut seen = Vec::new();
    for (from, name) in &devices {
        let mut row = vec![name.clone()];
        row.extend(devices.iter().map(|&(to, _)| cell(graph, *from, to, &mut seen)));
        row.extend(affinity(machine, graph, *from));
        rows.push(row);
    }
    let mut text = aligned(&rows);
    write_legend(&mut text, &seen);
    write_ports(&mut text, machine);
    text
}

fn cell(graph: &Graph, from: NodeId, to: NodeId, seen: &mut Vec<(PathClass, String)>) -> String {
    if from == to {
        return "X".into();
    }
    let path = graph.path(from, to);
    let class = path.as_ref().map_or(PathClass::Dis, |path| path.class);
    let label = path.map_or(class.name().into(), |path| path.label(graph));
    let kind = label.trim_end_matches(|c: char| c.is_ascii_digit()).to_owned();
    let kind = if kind == "NV" { "NV#".into() } else { kind };
    if !seen.iter().any(|(_, known)| *known == kind) {
        seen.push((class, kind));
    }
    label
}

/// Processors and number of the NUMA node that a device is below.
fn affinity(machine: &Machine, graph: &Graph, id: NodeId) -> [String; 2] {
    let numa = match graph.node(id).kind {
        NodeKind::Gpu { index, .. } => {
            machine.gpus().iter().find(|g| g.gpu.index == index).map(|gpu| gpu.place.numa)
        }
        NodeKind::Port(index) => {
            machine.ports().iter().find(|p| p.port.index == index).map(|port| port.numa)
        }
        _ => None,
    };
    let node = numa.and_then(|place| machine.numa_nodes.get(place));
    let shown = |text: Option<String>| text.filter(|t| !t.is_empty()).unwrap_or("N/A".into());
    [
        shown(node.map(|node| node.cpus.to_string())),
        shown(node.and_then(|node| node.id).map(|id| id.to_string())),
    ]
}

fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<_> =
            row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

fn write_legend(text: &mut String, seen: &[(PathClass, String)]) {
    text.push_str("\nLegend:\n  X     itself\n");
    for (class, meaning) in LEGEND {
        for (_, kind) in seen.iter().filter(|(known, _)| *known == class) {
            let meaning = if kind == "XGMI" { "AMD's links between GPUs" } else { meaning };
            // Writing to a String cannot fail.
            let _ = writeln!(text, "  {kind:<4}  {meaning}");
        }
    }
}

fn write_ports(text: &mut String, machine: &Machine) {
    let ports = machine.ports();
    if ports.is_empty() {
        return;
    }
    text.push_str("\nPorts:\n");
    for (i, placed) in ports.iter().enumerate() {
        let port = placed.port;
        let mut facts = Vec::new();
        let place = placed.card.as_ref().map(|card| card.device.bus_id.to_string());
        facts.extend(place.filter(|place| *place != port.name));
        facts.extend((port.port > 0).then(|| format!("port {}", port.port)));
        facts.extend(port.speed_mbit_per_s.map(|speed| format!("{} Gbit/s", speed as f64 / 1e3)));
        facts.extend((!port.partner.is_empty()).then(|| port.partner.clone()));
        facts.extend((port.state == crate::PortState::Down).then(|| "down".to_owned()));
        let line = format!("  NIC{i}: {}  {}", port.name, facts.join(", "));
        text.push_str(line.trim_end());
        text.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use crate::{Graph, Machine, table};

    #[test]
    fn two_gpus_and_a_port_are_a_table() {
        let text = r#"<system version="1">
          <cpu numaid="0" affinity="0000000f" arch="x86_64" vendor="GenuineIntel">
            <pci busid="0000:10:00.0" class="0x060400" link_speed="16 GT/s" link_width="16">
              <pci busid="0000:11:00.0" link_speed="16 GT/s" link_width="16">
                <gpu dev="0" sm="80"><nvlink target="0000:21:00.0" count="4" tclass="0x030200"/></gpu>
              </pci>
              <pci busid="0000:12:00.0" link_speed="16 GT/s" link_width="16">
                <nic><net name="mlx5_0" dev="0" speed="200000" port="1"/></nic>
              </pci>
            </pci>
          </cpu>
          <cpu numaid="1" affinity="000000f0" arch="x86_64" vendor="GenuineIntel">
            <pci busid="0000:21:00.0" link_speed="16 GT/s" link_width="16">
              <gpu dev="1" sm="80"><nvlink target="0000:11:00.0" count="4" tclass="0x030200"/></gpu>
            </pci>
          </cpu>
        </system>"#;
        let machine = Machine::from_xml(text).expect("a machine");
        let (graph, warnings) = Graph::new(&machine);
        assert!(warnings.is_empty(), "{warnings:?}");
        let expected = "      GPU0  GPU1  NIC0  CPU Affinity  NUMA Affinity
GPU0  X     NV4   PIX   0-3           0
GPU1  NV4   X     SYS   4-7           1
NIC0  PIX   SYS   X     0-3           0

Legend:
  X     itself
  NV#   NVLinks, of which there are #, direct or through NVSwitches
  PIX   PCIe through at most one switch
  SYS   through several NUMA nodes

Ports:
  NIC0: mlx5_0  0000:12:00.0, port 1, 200 Gbit/s
";
        assert_eq!(table(&machine, &graph), expected);
    }
}
