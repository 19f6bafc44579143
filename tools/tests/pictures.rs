//! The pictures: plans, runs and predictions as SVG.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use roxmltree::{Document, Node};

/// A folder that is removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let folder = std::env::temp_dir().join(format!("ringtree-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder");
        Folder(folder)
    }

    fn file(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What is left there does no harm.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Runs the program with arguments that are separated by blanks.
fn ringtree(arguments: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringtree"));
    command.args(arguments.split(' ')).stdin(Stdio::null()).env_clear();
    command.output().expect("the program starts")
}

fn draw(arguments: &str, path: &str) -> String {
    let output = ringtree(arguments);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{arguments}: {stderr}");
    fs::read_to_string(Path::new(path)).expect("a picture")
}

fn parse(svg: &str) -> Document<'_> {
    Document::parse(svg).expect("well-formed XML")
}

fn named<'a>(picture: &'a Document, name: &'a str) -> impl Iterator<Item = Node<'a, 'a>> {
    picture.descendants().filter(move |node| node.has_tag_name(name))
}

/// What is written in the picture.
fn words(picture: &Document) -> Vec<String> {
    named(picture, "text").filter_map(|node| Some(node.text()?.trim().to_owned())).collect()
}

fn count(words: &[String], word: &str) -> usize {
    words.iter().filter(|other| *other == word).count()
}

/// Lines through so many points.
fn curves(picture: &Document, points: usize) -> usize {
    let of = |node: &Node| node.attribute("points").map_or(0, |p| p.split_whitespace().count());
    named(picture, "polyline").filter(|node| of(node) == points).count()
}

/// Every text lies inside the picture, as far as that can be told without its font.
fn assert_nothing_is_cut_off(picture: &Document) {
    let root = picture.root_element();
    let size = |name: &str| root.attribute(name).and_then(|n| n.parse::<f64>().ok()).expect(name);
    let (width, height) = (size("width"), size("height"));
    for node in named(picture, "text") {
        let at = |name: &str| node.attribute(name).and_then(|n| n.parse::<f64>().ok()).expect(name);
        let length = 0.6 * at("font-size") * node.text().unwrap_or("").trim().len() as f64;
        let (before, after) = match node.attribute("text-anchor") {
            Some("end") => (length, 0.0),
            Some("middle") => (length / 2.0, length / 2.0),
            _ => (0.0, length),
        };
        let along = if node.attribute("transform").is_some() { at("y") } else { at("x") };
        let room = if node.attribute("transform").is_some() { height } else { width };
        assert!(along - before >= 0.0 && along + after <= room, "{:?} at {along}", node.text());
        assert!((0.0..=height).contains(&at("y")), "{:?}", node.text());
    }
}

#[test]
fn a_plan_has_a_column_for_each_rank_and_an_arrow_for_each_message() {
    let folder = Folder::new("plan");
    let path = folder.file("ring.svg");
    let svg = draw(&format!("plan all-reduce --algorithm ring --ranks 5 --svg {path}"), &path);
    let picture = parse(&svg);
    let words = words(&picture);
    for rank in 0..5 {
        assert_eq!(count(&words, &format!("rank {rank}")), 1, "{words:?}");
        assert_eq!(count(&words, &format!("chunk {rank}")), 1, "{words:?}");
    }
    assert_eq!(count(&words, "rank 5"), 0);
    // 8 turns, of which 4 reduce; and one of each in the legend.
    assert_eq!(named(&picture, "polygon").count(), 5 * 8 + 1);
    assert_eq!(named(&picture, "circle").count(), 5 * 4 + 1);
    let colours: std::collections::BTreeSet<_> =
        named(&picture, "polygon").filter_map(|node| node.attribute("fill")).collect();
    assert_eq!(colours.len(), 5 + 1, "one a chunk and the legend's");
    assert_nothing_is_cut_off(&picture);
}

#[test]
fn plans_of_every_collective_can_be_drawn() {
    let folder = Folder::new("plans");
    for (arguments, messages) in [
        ("all-reduce --algorithm halving-doubling --ranks 16", 16 * 8),
        ("all-reduce --algorithm double-tree --ranks 2", 4),
        ("all-gather --algorithm direct --ranks 7", 42),
        ("reduce --algorithm chain --ranks 3 --root 1", 2),
        // The half of the blocks in which the circle closes goes in two pieces.
        ("scatter --algorithm tree --ranks 64 --root 10", 63 + 1),
        ("barrier --algorithm dissemination --ranks 8", 24),
        ("all-reduce --algorithm ring --ranks 1", 0),
    ] {
        let path = folder.file("plan.svg");
        let svg = draw(&format!("plan {arguments} --svg {path}"), &path);
        let picture = parse(&svg);
        assert_eq!(named(&picture, "polygon").count(), messages + 1, "{arguments}");
        assert_nothing_is_cut_off(&picture);
    }
}

#[test]
fn a_run_has_a_curve_for_each_algorithm_and_the_earlier_one_beside_it() {
    let folder = Folder::new("run");
    let (path, json) = (folder.file("run.svg"), folder.file("run.json"));
    let bench = "bench all-reduce --ranks 2 --sizes 0,64,1K,4K -n 2 -w 0 --in-place";
    let all = format!("{bench} --algorithm all --json {json} --plot {path}");
    let svg = draw(&all, &path);
    let picture = parse(&svg);
    let words = self::words(&picture);
    let names =
        ["ring", "double-tree", "doubling", "one-shot", "two-shot", "star", "halving-doubling"];
    for name in names {
        assert_eq!(count(&words, name), 1, "{words:?}");
    }
    assert_eq!(count(&words, "chosen by the library"), 1);
    // Of the hierarchical one as well; of time and of bus bandwidth; without the size 0.
    assert_eq!(curves(&picture, 3), 2 * (names.len() + 1));
    assert_nothing_is_cut_off(&picture);

    let beside = format!("{bench} --baseline {json} --plot {path}");
    let svg = draw(&beside, &path);
    let picture = parse(&svg);
    let words = self::words(&picture);
    let labels = ["in place", "in place, earlier", "time", "bus bandwidth (GB/s)", "4K"];
    assert!(labels.iter().all(|label| count(&words, label) >= 1), "{words:?}");
    // Of each curve, 3 points of time and of bus bandwidth and the legend's, each a ring: two circles.
    assert_eq!(named(&picture, "circle").count(), 2 * 7 * 2);
}

#[test]
fn types_and_placements_are_curves_of_their_own() {
    let folder = Folder::new("types");
    let path = folder.file("types.svg");
    let svg = draw(
        &format!("bench all-reduce --ranks 2 --sizes 64,1K -n 2 -w 0 -d all --plot {path}"),
        &path,
    );
    let picture = parse(&svg);
    let words = words(&picture);
    let labels = ["float, out of place", "float, in place", "uint64, in place"];
    assert!(labels.iter().all(|label| count(&words, label) == 1), "{words:?}");
    assert_nothing_is_cut_off(&picture);
}

#[test]
fn a_prediction_has_a_curve_for_each_algorithm() {
    let folder = Folder::new("sim");
    let path = folder.file("sim.svg");
    let machine = "--bytes 1M --latency-us 10 --bandwidth 12.5G";
    let svg = draw(&format!("sim all-gather --ranks 2,4,8,16 {machine} --plot {path}"), &path);
    let picture = parse(&svg);
    let words = words(&picture);
    let labels = ["ring", "direct", "halving-doubling", "16", "ranks"];
    assert!(labels.iter().all(|label| count(&words, label) >= 1), "{words:?}");
    assert_eq!(curves(&picture, 4), 2 * 3);
    assert_nothing_is_cut_off(&picture);
}

#[test]
fn what_cannot_be_drawn_is_said_before_anything_is_done() {
    for (arguments, said) in [
        ("plan all-reduce --algorithm ring --ranks 65 --svg x.svg", "at most 64"),
        ("plan all-reduce --algorithm ring --ranks 4 --svg /nowhere/x.svg", "/nowhere/x.svg"),
        ("plan all-reduce --algorithm ring --ranks 4 --check --svg x.svg", "exclude each other"),
        ("bench barrier --ranks 2 --plot x.svg", "sizes above 0"),
        ("bench all-reduce --ranks 2 --plot /nowhere/x.svg", "/nowhere/x.svg"),
    ] {
        let output = ringtree(arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments}: {stderr}");
        assert!(stderr.contains(said) && stderr.lines().count() == 1, "{arguments}: {stderr}");
    }
}
