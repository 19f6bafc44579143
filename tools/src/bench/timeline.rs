//! The timeline of a call on GPUs: which rank's copies, kernels and messages took which time, as a file that
//! <https://ui.perfetto.dev> draws, and how near the call came to the time of what was busiest.

use std::io::{self, Write};

use ringtree::device::{Activity, Entry};
use ringtree::{Communicator, Error, Op};
use serde::Serialize;
use serde_json::{Value, json};

/// Numbers that an entry is sent as.
const FIELDS: usize = 8;

/// Between two calls in the drawing.
const GAP_NS: u64 = 1_000_000;

/// What one call did on all ranks.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// What was called.
    name: String,
    /// From the barrier before it until the last rank had its result.
    whole_ns: u64,
    /// By rank.
    entries: Vec<Vec<Entry>>,
}

/// A line of the drawing, and what may be the busiest. Slices follow one another: where one has begun before another of
/// the same engine or wire was over, it begins there.
#[derive(Clone, Debug)]
struct Track {
    name: String,
    slices: Vec<Slice>,
}

/// What a rank was busy with.
#[derive(Clone, Debug)]
struct Slice {
    name: String,
    lane: u32,
    peer: Option<u32>,
    entry_bytes: u64,
    from_host_bytes: u64,
    to_host_bytes: u64,
    begin_ns: u64,
    end_ns: u64,
}

/// How near a call came to its bound.
#[derive(Clone, Debug, Serialize)]
pub struct Overlap {
    call: String,
    /// What was busy for the longest time.
    busiest: String,
    /// For how long.
    busy_ms: f64,
    /// How long the call took.
    whole_ms: f64,
    /// How many times that.
    ratio: f64,
}

impl Recorded {
    /// Collects at rank 0 what all ranks have recorded of a call that took this one so long; elsewhere nothing. All ranks
    /// call it.
    pub fn collect(
        communicator: &Communicator,
        name: String,
        entries: &[Entry],
        whole_ns: u64,
    ) -> Result<Option<Recorded>, Error> {
        let mut longest = [whole_ns];
        communicator.reduce(&mut longest, Op::Max, 0)?;
        let numbers: Vec<u64> = entries.iter().flat_map(encode).collect();
        if communicator.rank() > 0 {
            communicator.send(&[numbers.len() as u64], 0)?;
            communicator.send(&numbers, 0)?;
            return Ok(None);
        }
        let mut all = vec![entries.to_vec()];
        for peer in 1..communicator.ranks() {
            let mut length = [0_u64];
            communicator.receive(&mut length, peer)?;
            let mut theirs = vec![0_u64; length[0] as usize];
            communicator.receive(&mut theirs, peer)?;
            all.push(theirs.chunks_exact(FIELDS).filter_map(decode).collect());
        }
        Ok(Some(Recorded { name, whole_ns: longest[0], entries: all }))
    }

    /// How near the call came to the time of what was busiest; nothing if it did nothing.
    pub fn overlap(&self) -> Option<Overlap> {
        let ranks = 0..self.entries.len() as u32;
        let all = ranks.flat_map(|rank| self.resources(rank).map(move |track| (rank, track)));
        let busy = all.map(|(rank, track)| (track.busy_ns(), rank, track.name));
        let (busy_ns, rank, name) = busy.max_by_key(|(busy_ns, ..)| *busy_ns)?;
        (busy_ns > 0).then(|| Overlap {
            call: self.name.clone(),
            busiest: format!("{name} of rank {rank}"),
            busy_ms: busy_ns as f64 / 1e6,
            whole_ms: self.whole_ns as f64 / 1e6,
            ratio: self.whole_ns as f64 / busy_ns as f64,
        })
    }

    /// What may be the busiest of a rank. Kernels that reach the host's memory occupy the bus, as copies do.
    fn resources(&self, rank: u32) -> impl Iterator<Item = Track> {
        let work = |name: &str, belongs: fn(&Entry) -> bool| self.work(rank, name, belongs);
        [
            work("bus down", |entry| entry.from_host_bytes > 0),
            work("bus up", |entry| entry.to_host_bytes > 0),
            work("kernels", |entry| entry.activity == Activity::Kernel),
            self.wire_out(rank),
        ]
        .into_iter()
    }

    /// The lines of a rank's drawing.
    fn tracks(&self, rank: u32) -> Vec<Track> {
        let of = |name: &str, activity: Activity| {
            let entries = self.entries[rank as usize].iter();
            let slices = entries.filter(|entry| entry.activity == activity);
            Track::new(name, slices.map(|entry| slice(activity_name(activity), entry)).collect())
        };
        let mut tracks = vec![
            of("copies down", Activity::CopyDown),
            of("copies up", Activity::CopyUp),
            of("copies across", Activity::CopyAcross),
            of("kernels", Activity::Kernel),
            self.wire_out(rank),
            self.wire_in(rank),
        ];
        let entries = &self.entries[rank as usize];
        let lanes = entries.iter().map(|entry| entry.lane + 1).max().unwrap_or(0);
        tracks.extend((0..lanes).map(|lane| {
            let is_of_lane = |e: &&Entry| e.activity == Activity::Batch && e.lane == lane;
            let batches = entries.iter().filter(is_of_lane).map(|entry| slice("batch", entry));
            Track::new(&format!("lane {lane}"), batches.collect())
        }));
        tracks.retain(|track| !track.slices.is_empty());
        tracks
    }

    fn work(&self, rank: u32, name: &str, belongs: fn(&Entry) -> bool) -> Track {
        let is_work = |e: &&Entry| (e.activity as u8) < Activity::Batch as u8 && belongs(e);
        let entries = self.entries[rank as usize].iter().filter(is_work);
        Track::new(name, entries.map(|entry| slice(name, entry)).collect())
    }

    fn wire_out(&self, rank: u32) -> Track {
        let peers = 0..self.entries.len() as u32;
        let flights = peers.flat_map(|peer| self.flights(rank, peer));
        let name = |f: Slice| Slice { name: format!("to rank {}", f.peer.unwrap_or(0)), ..f };
        Track::new("wire out", flights.map(name).collect())
    }

    fn wire_in(&self, rank: u32) -> Track {
        let peers = 0..self.entries.len() as u32;
        let flights = peers.flat_map(|peer| {
            let from = move |f| Slice { name: format!("from rank {peer}"), peer: Some(peer), ..f };
            self.flights(peer, rank).into_iter().map(from)
        });
        Track::new("wire in", flights.collect())
    }

    /// What one rank has sent to another, each slice from when it was handed to the link until all of it had come.
    fn flights(&self, from: u32, to: u32) -> Vec<Slice> {
        let is = |entry: &Entry, activity: Activity, peer: u32| {
            entry.activity == activity && entry.peer == Some(peer) && entry.bytes > 0
        };
        let (sent, received) = (&self.entries[from as usize], &self.entries[to as usize]);
        let posted = sent.iter().filter(|entry| is(entry, Activity::Posted, to));
        let lanes = posted.clone().map(|entry| entry.lane + 1).max().unwrap_or(0);
        let mut flights = Vec::new();
        for lane in 0..lanes {
            let mut arrivals =
                received.iter().filter(|e| e.lane == lane && is(e, Activity::Arrived, from));
            let (mut sent_bytes, mut come_bytes, mut come_ns) = (0, 0, 0);
            for entry in posted.clone().filter(|entry| entry.lane == lane) {
                sent_bytes += entry.bytes;
                while come_bytes < sent_bytes
                    && let Some(arrival) = arrivals.next()
                {
                    come_bytes += arrival.bytes;
                    come_ns = arrival.end_ns;
                }
                let end_ns = come_ns.max(entry.begin_ns);
                flights.push(Slice { end_ns, ..slice("", entry) });
            }
        }
        flights
    }
}

impl Track {
    /// Puts slices one behind the other, in the order in which they are over.
    fn new(name: &str, mut slices: Vec<Slice>) -> Track {
        slices.sort_by_key(|slice| (slice.end_ns, slice.begin_ns));
        let mut free_ns = 0;
        for slice in &mut slices {
            slice.begin_ns = slice.begin_ns.max(free_ns).min(slice.end_ns);
            free_ns = slice.end_ns;
        }
        Track { name: name.to_owned(), slices }
    }

    fn busy_ns(&self) -> u64 {
        self.slices.iter().map(|slice| slice.end_ns - slice.begin_ns).sum()
    }
}

impl Overlap {
    /// The line below the table.
    fn text(&self) -> String {
        let Overlap { call, busiest, busy_ms, whole_ms, ratio } = self;
        format!(
            "# overlap, {call}: {ratio:.2} times the busiest resource ({busiest}: {busy_ms:.1} of {whole_ms:.1} ms)\n"
        )
    }
}

/// The lines below the table.
pub fn text(all: &[Recorded]) -> String {
    let lines: String = all.iter().filter_map(Recorded::overlap).map(|o| o.text()).collect();
    if lines.is_empty() { lines } else { lines + "#\n" }
}

/// Writes calls, one behind the other, in the JSON that Perfetto and Chrome read.
pub fn write(mut file: impl Write, all: &[Recorded]) -> io::Result<()> {
    writeln!(file, "{{\"displayTimeUnit\": \"ms\", \"traceEvents\": [")?;
    let mut begin_ns = 0;
    let mut events = Vec::new();
    for recorded in all {
        for rank in 0..recorded.entries.len() as u32 {
            add_rank(&mut events, recorded, rank, begin_ns);
        }
        begin_ns += recorded.whole_ns + GAP_NS;
    }
    for (index, event) in events.iter().enumerate() {
        let comma = if index + 1 < events.len() { "," } else { "" };
        writeln!(file, "{event}{comma}")?;
    }
    writeln!(file, "], \"otherData\": {{\"overlap\": [")?;
    let overlaps: Vec<Overlap> = all.iter().filter_map(Recorded::overlap).collect();
    for (index, overlap) in overlaps.iter().enumerate() {
        let comma = if index + 1 < overlaps.len() { "," } else { "" };
        writeln!(file, "{}{comma}", serde_json::to_string(overlap)?)?;
    }
    writeln!(file, "]}}}}")?;
    file.flush()
}

/// The events of one rank: its process, its tracks with their names, and what is on them.
fn add_rank(events: &mut Vec<Value>, recorded: &Recorded, rank: u32, begin_ns: u64) {
    let us = |ns: u64| ns as f64 / 1e3;
    let named = |what: &str, thread: usize, name: &str| json!({"ph": "M", "name": what, "pid": rank, "tid": thread, "args": {"name": name}});
    events.push(named("process_name", 0, &format!("rank {rank}")));
    events.push(named("thread_name", 0, "call"));
    events.push(json!({
        "ph": "X", "name": recorded.name, "pid": rank, "tid": 0,
        "ts": us(begin_ns), "dur": us(recorded.whole_ns), "args": {},
    }));
    for (thread, track) in recorded.tracks(rank).iter().enumerate() {
        // Numbers by name, so that a track is the same one in all calls.
        let thread = thread_number(&track.name).unwrap_or(100 + thread);
        events.push(named("thread_name", thread, &track.name));
        for (number, slice) in track.slices.iter().enumerate() {
            let mut arguments = json!({
                "bytes": slice.entry_bytes, "lane": slice.lane, "slice": number, "call": recorded.name,
            });
            if let Some(peer) = slice.peer {
                arguments["peer"] = peer.into();
            }
            if slice.from_host_bytes + slice.to_host_bytes > 0 {
                arguments["from_host_bytes"] = slice.from_host_bytes.into();
                arguments["to_host_bytes"] = slice.to_host_bytes.into();
            }
            events.push(json!({
                "ph": "X", "name": slice.name, "pid": rank, "tid": thread,
                "ts": us(begin_ns + slice.begin_ns), "dur": us(slice.end_ns - slice.begin_ns),
                "args": arguments,
            }));
        }
    }
}

fn thread_number(track: &str) -> Option<usize> {
    let names = ["copies down", "copies up", "copies across", "kernels", "wire out", "wire in"];
    let lane = track.strip_prefix("lane ").and_then(|number| number.parse::<usize>().ok());
    let position = names.iter().position(|name| *name == track);
    position.map(|number| number + 1).or(lane.map(|lane| names.len() + 1 + lane))
}

fn activity_name(activity: Activity) -> &'static str {
    match activity {
        Activity::CopyDown => "copy from the host",
        Activity::CopyUp => "copy to the host",
        Activity::CopyAcross => "copy",
        Activity::Kernel => "kernel",
        Activity::Batch => "batch",
        Activity::Posted => "posted",
        Activity::Arrived => "arrived",
    }
}

fn slice(name: &str, entry: &Entry) -> Slice {
    let &Entry { lane, peer, bytes, from_host_bytes, to_host_bytes, begin_ns, end_ns, .. } = entry;
    let name = name.to_owned();
    Slice { name, lane, peer, entry_bytes: bytes, from_host_bytes, to_host_bytes, begin_ns, end_ns }
}

fn encode(entry: &Entry) -> [u64; FIELDS] {
    [
        entry.activity as u64,
        entry.lane.into(),
        entry.peer.map_or(0, |peer| u64::from(peer) + 1),
        entry.bytes,
        entry.from_host_bytes,
        entry.to_host_bytes,
        entry.begin_ns,
        entry.end_ns,
    ]
}

fn decode(numbers: &[u64]) -> Option<Entry> {
    let &[activity, lane, peer, bytes, from_host_bytes, to_host_bytes, begin_ns, end_ns] = numbers
    else {
        return None;
    };
    Some(Entry {
        activity: *Activity::ALL.get(activity as usize)?,
        lane: lane as u32,
        peer: peer.checked_sub(1).map(|peer| peer as u32),
        bytes,
        from_host_bytes,
        to_host_bytes,
        begin_ns,
        end_ns,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(activity: Activity, bytes: u64, begin_ns: u64, end_ns: u64) -> Entry {
        Entry {
            activity,
            lane: 0,
            peer: None,
            bytes,
            from_host_bytes: 0,
            to_host_bytes: 0,
            begin_ns,
            end_ns,
        }
    }

    fn moment(activity: Activity, peer: u32, lane: u32, bytes: u64, at_ns: u64) -> Entry {
        Entry { peer: Some(peer), lane, ..entry(activity, bytes, at_ns, at_ns) }
    }

    /// Rank 0 has a kernel that waits for another one, and sends three slices on two lanes, of which one comes in two parts.
    fn recorded() -> Recorded {
        let sender = vec![
            entry(Activity::Kernel, 100, 0, 40_000),
            entry(Activity::Kernel, 100, 10_000, 70_000),
            moment(Activity::Posted, 1, 0, 64, 40_000),
            moment(Activity::Posted, 1, 0, 64, 50_000),
            moment(Activity::Posted, 1, 1, 32, 70_000),
        ];
        let receiver = vec![
            moment(Activity::Arrived, 0, 0, 64, 60_000),
            moment(Activity::Arrived, 0, 0, 32, 80_000),
            moment(Activity::Arrived, 0, 0, 32, 90_000),
            moment(Activity::Arrived, 0, 1, 32, 120_000),
        ];
        let name = "all-reduce of 320 bytes".to_owned();
        Recorded { name, whole_ns: 130_000, entries: vec![sender, receiver] }
    }

    #[test]
    fn what_waits_for_an_engine_or_a_wire_begins_when_that_is_free() {
        let recorded = recorded();
        let times = |track: &Track| -> Vec<(u64, u64)> {
            track.slices.iter().map(|slice| (slice.begin_ns, slice.end_ns)).collect()
        };
        let tracks = recorded.tracks(0);
        let names: Vec<&str> = tracks.iter().map(|track| track.name.as_str()).collect();
        assert_eq!(names, ["kernels", "wire out"]);
        assert_eq!(times(&tracks[0]), [(0, 40_000), (40_000, 70_000)]);
        let flights = [(40_000, 60_000), (60_000, 90_000), (90_000, 120_000)];
        assert_eq!(times(&tracks[1]), flights);
        let at_receiver = recorded.tracks(1);
        assert_eq!((at_receiver.len(), at_receiver[0].name.as_str()), (1, "wire in"));
        assert_eq!(times(&at_receiver[0]), flights);
        assert_eq!(
            text(&[recorded]),
            "# overlap, all-reduce of 320 bytes: 1.62 times the busiest resource (wire out of rank 0: 0.1 of 0.1 \
             ms)\n#\n"
        );
    }

    #[test]
    fn the_file_has_a_process_a_rank_and_a_line_a_track() {
        let mut file = Vec::new();
        write(&mut file, &[recorded(), recorded()]).unwrap();
        let trace: Value = serde_json::from_slice(&file).unwrap();
        let events = trace["traceEvents"].as_array().unwrap();
        let slices = |pid: u64, name: &str| -> Vec<f64> {
            let is = |e: &&Value| e["ph"] == "X" && e["pid"] == pid && e["name"] == name;
            events.iter().filter(is).map(|event| event["ts"].as_f64().unwrap()).collect()
        };
        assert_eq!(slices(0, "kernel"), [0.0, 40.0, 1130.0, 1170.0]);
        assert_eq!(slices(1, "from rank 0").len(), 6);
        assert_eq!(slices(1, "all-reduce of 320 bytes"), [0.0, 1130.0]);
        let overlaps = trace["otherData"]["overlap"].as_array().unwrap();
        assert_eq!((overlaps.len(), &overlaps[0]["busiest"]), (2, &"wire out of rank 0".into()));
    }

    #[test]
    fn entries_are_sent_as_they_are() {
        for activity in Activity::ALL {
            let entry = Entry { to_host_bytes: 7, ..moment(activity, 3, 2, 9, 11) };
            assert_eq!(decode(&encode(&entry)), Some(entry));
        }
        assert_eq!(decode(&[99; FIELDS]), None);
    }
}
