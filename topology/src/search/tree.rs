//! The best tree alone: each device but one has a parent, at most [`MOST_CHILDREN`] have the same one.
//! What is reduced goes up while what is broadcast goes down, so every link of the tree is used both ways at the
//! same time.
//!
//! Branch and bound over pairs of devices, by what a pair can carry: each is in the tree or not. Of trees with
//! the same rate the one is best that loads the links least (as for rings: `single`).

use serde::Serialize;

use super::checked_routes;
use super::routes::{Route, Routes};
use crate::error::Error;
use crate::graph::{EdgeId, Graph, NodeId};

/// With two, a device takes part in three exchanges at once.
const MOST_CHILDREN: usize = 2;

/// After so many steps the best tree found so far is taken: a few milliseconds. With up to [`EXACT_UP_TO`]
/// devices there are more, which are rarely needed.
const MOST_STEPS: u32 = 50_000;
const MOST_STEPS_OF_FEW: u32 = 3_000_000;
const EXACT_UP_TO: usize = 8;

/// With more devices there would be too many pairs of a route there and another one back.
const MIXED_UP_TO: usize = 16;

const EQUAL: f64 = 1e-9;

/// A tree, and the rate at which data can go up and down it at the same time.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Tree {
    /// What the other fields speak of.
    pub devices: Vec<NodeId>,
    /// Place of the parent of each device; `None` for the root, which is in the middle.
    pub parents: Vec<Option<usize>>,
    /// The links from each device to its parent; none for the root.
    pub up: Vec<Vec<EdgeId>>,
    /// The links from the parent to each device; none for the root.
    pub down: Vec<Vec<EdgeId>>,
    /// Bytes a second, up and down at the same time; 0 for a single device.
    pub rate_bytes_per_s: f64,
}

/// The tree over all of these devices that carries most: exactly up to 8 devices, nearly above.
///
/// # Errors
/// If a device is none of the graph's nodes or is named twice, or if no tree leads to all of them.
pub fn best_tree(graph: &Graph, devices: &[NodeId]) -> Result<Tree, Error> {
    let routes = checked_routes(graph, devices)?;
    let pairs = pairs(&routes);
    let mut search = Search::new(&routes, &pairs);
    search.greedy();
    search.extend(0, f64::INFINITY, 0.0);
    match search.best {
        Some((rate, _, chosen)) if devices.len() > 1 => {
            Ok(rooted(devices, &routes, chosen.iter().map(|&i| &pairs[i]), rate))
        }
        _ if devices.len() < 2 => Ok(rooted(devices, &routes, [].into_iter(), 0.0)),
        _ => Err(super::no_ring(graph, devices, &routes)),
    }
}

/// Two devices, with a route each way.
struct Pair {
    ends: [usize; 2],
    routes: [usize; 2],
    /// Constraints of both routes.
    constraints: Vec<usize>,
    bottleneck: f64,
    load: f64,
}

/// All pairs that have routes both ways, each with every choice of routes (with more than [`MIXED_UP_TO`] devices,
/// with those that are the same in number there and back); the widest first.
fn pairs(routes: &Routes) -> Vec<Pair> {
    let mut pairs = Vec::new();
    let is_mixed = routes.count <= MIXED_UP_TO;
    for (a, b) in (0..routes.count).flat_map(|a| (a + 1..routes.count).map(move |b| (a, b))) {
        for (i, there) in routes.between(a, b).iter().enumerate() {
            let back = routes.between(b, a).iter().enumerate();
            for (j, back) in back.filter(|(j, _)| is_mixed || *j == i) {
                let constraints = [&there.constraints[..], &back.constraints[..]].concat();
                let capacity = |c: &usize| routes.constraints[*c].capacity;
                let bottleneck = routes.bottleneck(there).min(routes.bottleneck(back));
                let load = constraints.iter().map(|c| 1.0 / capacity(c)).sum();
                pairs.push(Pair { ends: [a, b], routes: [i, j], constraints, bottleneck, load });
            }
        }
    }
    pairs.sort_by(|x, y| {
        let wider = y.bottleneck.total_cmp(&x.bottleneck);
        wider.then(x.load.total_cmp(&y.load)).then(x.ends.cmp(&y.ends))
    });
    pairs
}

struct Search<'a> {
    routes: &'a Routes,
    pairs: &'a [Pair],
    /// The least load of a pair from each place on.
    least_load: Vec<f64>,
    uses: Vec<u32>,
    degree: Vec<usize>,
    /// A device's group; devices that the chosen pairs connect have the same.
    group: Vec<usize>,
    chosen: Vec<usize>,
    /// Rate, load and numbers of the pairs.
    best: Option<(f64, f64, Vec<usize>)>,
    steps: u32,
    most_steps: u32,
}

impl<'a> Search<'a> {
    fn new(routes: &'a Routes, pairs: &'a [Pair]) -> Search<'a> {
        let mut least_load = vec![f64::INFINITY; pairs.len() + 1];
        for (i, pair) in pairs.iter().enumerate().rev() {
            least_load[i] = pair.load.min(least_load[i + 1]);
        }
        Search {
            routes,
            pairs,
            least_load,
            uses: vec![0; routes.constraints.len()],
            degree: vec![0; routes.count],
            group: (0..routes.count).collect(),
            chosen: Vec::new(),
            best: None,
            steps: 0,
            most_steps: if routes.count <= EXACT_UP_TO { MOST_STEPS_OF_FEW } else { MOST_STEPS },
        }
    }

    /// A tree to begin with: again and again the pair that leaves the highest rate.
    fn greedy(&mut self) {
        let (mut rate, mut load) = (f64::INFINITY, 0.0);
        while self.chosen.len() + 1 < self.routes.count {
            let mut next: Option<(f64, usize)> = None;
            for (i, pair) in self.pairs.iter().enumerate() {
                // They are in the order of what they carry: none that follows does better.
                let most = rate.min(pair.bottleneck);
                if next.is_some_and(|(best, _)| most <= best * (1.0 + EQUAL)) {
                    break;
                }
                if self.fits(i) {
                    let rate = self.with(i, rate);
                    if next.is_none_or(|(best, _)| rate > best * (1.0 + EQUAL)) {
                        next = Some((rate, i));
                    }
                }
            }
            let Some((now, i)) = next else { break };
            (rate, load) = (now, load + self.pairs[i].load);
            self.take(i);
        }
        self.note(rate, load);
        while self.chosen.pop().is_some() {}
        self.uses.fill(0);
        self.degree.fill(0);
        self.group = (0..self.routes.count).collect();
    }

    /// With or without each pair from `at` on.
    fn extend(&mut self, at: usize, rate: f64, load: f64) {
        let missing = self.routes.count.saturating_sub(1 + self.chosen.len());
        if missing == 0 {
            self.note(rate, load);
            return;
        }
        for i in at..self.pairs.len() {
            self.steps += 1;
            let least = load + missing as f64 * self.least_load[i];
            // Pairs are in the order of what they carry: none that follows does better.
            let hopeless = !self.is_better(rate.min(self.pairs[i].bottleneck), least);
            if self.steps > self.most_steps || hopeless {
                return;
            }
            let now = self.with(i, rate);
            let least = load + self.pairs[i].load + (missing - 1) as f64 * self.least_load[i];
            if self.fits(i) && self.is_better(now, least) {
                let before = self.group.clone();
                self.take(i);
                self.extend(i + 1, now, load + self.pairs[i].load);
                self.give_back(i, before);
            }
        }
    }

    /// Whether a pair connects what was not connected and nobody gets too many neighbours.
    fn fits(&self, pair: usize) -> bool {
        let [a, b] = self.pairs[pair].ends;
        let free = |device: usize| self.degree[device] <= MOST_CHILDREN;
        self.group[a] != self.group[b] && free(a) && free(b)
    }

    /// The rate with one pair more.
    fn with(&self, pair: usize, rate: f64) -> f64 {
        let constraints = &self.pairs[pair].constraints;
        let share = |c: usize| {
            let times = constraints.iter().filter(|&&other| other == c).count() as f64;
            self.routes.constraints[c].capacity / (f64::from(self.uses[c]) + times)
        };
        constraints.iter().map(|&c| share(c)).fold(rate, f64::min)
    }

    fn take(&mut self, pair: usize) {
        let Pair { ends: [a, b], constraints, .. } = &self.pairs[pair];
        constraints.iter().for_each(|&c| self.uses[c] += 1);
        self.degree[*a] += 1;
        self.degree[*b] += 1;
        let (kept, gone) = (self.group[*a], self.group[*b]);
        self.group.iter_mut().filter(|group| **group == gone).for_each(|group| *group = kept);
        self.chosen.push(pair);
    }

    fn give_back(&mut self, pair: usize, groups: Vec<usize>) {
        let Pair { ends: [a, b], constraints, .. } = &self.pairs[pair];
        constraints.iter().for_each(|&c| self.uses[c] -= 1);
        self.degree[*a] -= 1;
        self.degree[*b] -= 1;
        self.group = groups;
        self.chosen.pop();
    }

    fn is_better(&self, rate: f64, load: f64) -> bool {
        self.best.as_ref().is_none_or(|(best_rate, best_load, _)| {
            rate > best_rate * (1.0 + EQUAL)
                || (rate >= best_rate * (1.0 - EQUAL) && load < best_load * (1.0 - EQUAL))
        })
    }

    fn note(&mut self, rate: f64, load: f64) {
        let whole = self.chosen.len() + 1 == self.routes.count;
        if whole && self.is_better(rate, load) {
            self.best = Some((rate, load, self.chosen.clone()));
        }
    }
}

/// The tree of these pairs, with its root in the middle so that it is as low as can be.
fn rooted<'a>(
    devices: &[NodeId],
    routes: &Routes,
    pairs: impl Iterator<Item = &'a Pair>,
    rate: f64,
) -> Tree {
    let mut neighbours: Vec<Vec<(usize, &Route, &Route)>> = vec![Vec::new(); devices.len()];
    for pair in pairs {
        let [a, b] = pair.ends;
        let there = &routes.between(a, b)[pair.routes[0]];
        let back = &routes.between(b, a)[pair.routes[1]];
        neighbours[a].push((b, there, back));
        neighbours[b].push((a, back, there));
    }
    let from = |root: usize| {
        let mut parents = vec![None; devices.len()];
        let (mut level, mut height) = (vec![(root, root)], 0);
        while !level.is_empty() {
            let mut next = Vec::new();
            for (node, parent) in level {
                for &(other, down, up) in neighbours[node].iter().filter(|(o, ..)| *o != parent) {
                    parents[other] = Some((node, up, down));
                    next.push((other, node));
                }
            }
            (level, height) = (next, height + 1);
        }
        (height, parents)
    };
    // A root has one child less to spare than a device with a parent.
    let roots = (0..devices.len()).filter(|&root| neighbours[root].len() <= MOST_CHILDREN);
    let best =
        roots.map(|root| (from(root), root)).min_by_key(|((height, _), root)| (*height, *root));
    let parents = best.map_or_else(Vec::new, |((_, parents), _)| parents);
    let edges = |route: &Route| route.edges.clone();
    let up = parents.iter().map(|p| p.map_or_else(Vec::new, |(_, up, _)| edges(up)));
    let down = parents.iter().map(|p| p.map_or_else(Vec::new, |(_, _, down)| edges(down)));
    Tree {
        devices: devices.to_vec(),
        up: up.collect(),
        down: down.collect(),
        parents: parents.iter().map(|parent| parent.map(|(node, ..)| node)).collect(),
        rate_bytes_per_s: rate,
    }
}
