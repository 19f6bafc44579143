//! From chunks to bytes: the only place where remainders and empty chunks exist.

use ringtree_plan::{Space, Span};

/// Chunks begin at multiples of this many bytes of their round, so that vectors and cache lines
/// are whole.
const CHUNK_ALIGNMENT_BYTES: u64 = 64;

/// What there is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// So many elements: they are cut into rounds, and a round into chunks.
    Whole(u64),
    /// As many blocks as chunks, of so many elements each: a round is a part of every block.
    Blocks(u64),
    /// As many blocks as chunks, each of a length of its own, which [`Geometry::vary`] tells.
    Varied,
}

/// How a buffer of elements is cut into rounds, and a round into chunks. Any count works.
#[derive(Clone, Debug)]
pub struct Geometry {
    /// Elements of the buffer, or of a block.
    count: u64,
    is_of_blocks: bool,
    element_bytes: u64,
    chunks: u64,
    /// Of the buffer, or of a block.
    round_elements: u64,
    rounds: u64,
    scratch: Vec<u32>,
    scratch_stride_bytes: u64,
    /// Where blocks that differ in length begin.
    varied: Option<Box<Varied>>,
}

/// Where the blocks of the input and of the output begin, in elements, and where the last one ends.
#[derive(Clone, Debug)]
struct Varied {
    input: Vec<u64>,
    output: Vec<u64>,
}

/// A range of bytes in one space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteSpan {
    /// First byte, from the beginning of the buffer (scratch: of the lane's scratch).
    pub offset: usize,
    /// Length.
    pub len: usize,
}

impl Geometry {
    /// Elements of `element_bytes` in rounds of about `round_bytes`, each of `chunks` chunks; `scratch`
    /// as in a plan.
    pub fn new(
        extent: Extent,
        element_bytes: usize,
        chunks: u32,
        scratch: &[u32],
        round_bytes: usize,
    ) -> Geometry {
        let element_bytes = element_bytes as u64;
        let unit = CHUNK_ALIGNMENT_BYTES / element_bytes;
        let (count, is_of_blocks, round_bytes) = match extent {
            Extent::Whole(count) => (count, false, round_bytes),
            Extent::Blocks(count) => (count, true, round_bytes / chunks.max(1) as usize),
            Extent::Varied => (0, true, round_bytes / chunks.max(1) as usize),
        };
        let round_elements = (round_bytes as u64 / element_bytes).div_ceil(unit).max(1) * unit;
        let mut geometry = Geometry {
            count,
            is_of_blocks,
            element_bytes,
            chunks: u64::from(chunks.max(1)),
            round_elements,
            rounds: rounds(count, round_elements),
            scratch: scratch.to_vec(),
            scratch_stride_bytes: 0,
            varied: None,
        };
        if extent == Extent::Varied {
            let bounds = vec![0; chunks as usize + 1];
            geometry.varied = Some(Box::new(Varied { input: bounds.clone(), output: bounds }));
        }
        let longest = geometry.longest_chunk_bytes() as u64;
        // Blocks that are one round follow one another as they do in the caller's buffers.
        let joins = is_of_blocks && geometry.rounds == 1;
        geometry.scratch_stride_bytes =
            if joins { longest } else { longest.next_multiple_of(CHUNK_ALIGNMENT_BYTES) };
        geometry
    }

    /// Sets how many elements the blocks of the input and of the output have, from the first on: of
    /// [`Extent::Varied`]. Ranks agree on the number of rounds if there is only one, or they know the
    /// same lengths.
    ///
    /// # Panics
    /// If the extent is another one, or the number of lengths not that of the chunks.
    pub fn vary(&mut self, input: &[usize], output: &[usize]) {
        let varied = self.varied.as_mut().expect("blocks that differ in length");
        for (bounds, lengths) in [(&mut varied.input, input), (&mut varied.output, output)] {
            assert_eq!(bounds.len(), lengths.len() + 1, "a length for each block");
            for (index, length) in lengths.iter().enumerate() {
                bounds[index + 1] = bounds[index] + *length as u64;
            }
        }
        self.count = input.iter().chain(output).copied().max().unwrap_or(0) as u64;
        self.rounds = rounds(self.count, self.round_elements);
        let longest = self.longest_chunk_bytes() as u64;
        self.scratch_stride_bytes = longest.next_multiple_of(CHUNK_ALIGNMENT_BYTES);
    }

    /// Rounds; at least 1, since ranks meet even when there is nothing to move.
    #[inline]
    pub fn rounds(&self) -> u64 {
        self.rounds
    }

    /// Bytes of scratch that a lane needs.
    pub fn scratch_bytes(&self) -> usize {
        self.scratch.len() * self.scratch_stride_bytes as usize
    }

    /// Where a span of a round lies. Of equal blocks that are one round any run is a span; else a span of scratch
    /// has at most one chunk, and one of blocks as well.
    #[inline]
    pub fn bytes(&self, round: u64, span: Span) -> ByteSpan {
        match &self.varied {
            None => self.even_bytes(round, span),
            Some(varied) => self.varied_bytes(varied, round, span),
        }
    }

    /// Of blocks that differ in length.
    fn varied_bytes(&self, varied: &Varied, round: u64, span: Span) -> ByteSpan {
        debug_assert!(span.len <= 1, "rounds of several blocks are not contiguous");
        let index = span.start as usize;
        let (bounds, block) = match span.space {
            Space::Input => (&varied.input, index),
            Space::Output => (&varied.output, index),
            Space::Scratch => (&varied.input, self.scratch[index] as usize),
        };
        let length = bounds[block + 1] - bounds[block];
        let start = (round * self.round_elements).min(length);
        let elements = (length - start).min(self.round_elements) * u64::from(span.len);
        let offset = match span.space {
            Space::Scratch => index as u64 * self.scratch_stride_bytes,
            _ => (bounds[block] + start) * self.element_bytes,
        };
        ByteSpan { offset: offset as usize, len: (elements * self.element_bytes) as usize }
    }

    fn even_bytes(&self, round: u64, span: Span) -> ByteSpan {
        let start = round * self.round_elements;
        let len = self.round_elements.min(self.count - start.min(self.count));
        let (offset, elements) = match span.space {
            Space::Scratch => {
                let joins = self.is_of_blocks && len == self.count;
                debug_assert!(span.len <= 1 || joins, "scratch chunks are not contiguous");
                let offset = u64::from(span.start) * self.scratch_stride_bytes;
                let like = u64::from(self.scratch[span.start as usize]);
                let elements = match self.is_of_blocks {
                    true => len * u64::from(span.len),
                    false => {
                        self.boundary(len, like + u64::from(span.len)) - self.boundary(len, like)
                    }
                };
                (offset, elements)
            }
            Space::Input | Space::Output if self.is_of_blocks => {
                debug_assert!(span.len <= 1 || len == self.count, "blocks are not contiguous");
                let offset = (u64::from(span.start) * self.count + start) * self.element_bytes;
                (offset, len * u64::from(span.len))
            }
            Space::Input | Space::Output => {
                let first = self.boundary(len, u64::from(span.start));
                let end = self.boundary(len, u64::from(span.end()));
                ((start + first) * self.element_bytes, end - first)
            }
        };
        ByteSpan { offset: offset as usize, len: (elements * self.element_bytes) as usize }
    }

    /// First element of a chunk in a round of `len` elements.
    #[inline]
    fn boundary(&self, len: u64, chunk: u64) -> u64 {
        if chunk == 0 {
            return 0;
        }
        if chunk >= self.chunks {
            return len;
        }
        let unit = CHUNK_ALIGNMENT_BYTES / self.element_bytes;
        (len.div_ceil(unit) * chunk / self.chunks * unit).min(len)
    }

    /// No chunk is longer.
    pub fn longest_chunk_bytes(&self) -> usize {
        let unit = CHUNK_ALIGNMENT_BYTES / self.element_bytes;
        let len = self.round_elements.min(self.count);
        if self.is_of_blocks {
            return (len * self.element_bytes) as usize;
        }
        (len.div_ceil(unit).div_ceil(self.chunks) * unit * self.element_bytes) as usize
    }
}

fn rounds(count: u64, round_elements: u64) -> u64 {
    count.div_ceil(round_elements).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_cover_every_round_without_gap_or_overlap() {
        for count in [0_u64, 1, 2, 3, 15, 16, 17, 1000, 4097] {
            for chunks in [1_u32, 2, 3, 7, 64] {
                for round_bytes in [64, 100, 1 << 12, 1 << 20] {
                    for element_bytes in [2, 4, 8] {
                        covers(&Geometry::new(
                            Extent::Whole(count),
                            element_bytes,
                            chunks,
                            &[],
                            round_bytes,
                        ));
                    }
                }
            }
        }
    }

    fn covers(geometry: &Geometry) {
        let mut next = 0;
        for round in 0..geometry.rounds() {
            for chunk in 0..geometry.chunks as u32 {
                let part = geometry.bytes(round, Span::output(chunk, 1));
                assert_eq!(part.offset, next, "{geometry:?} round {round} chunk {chunk}");
                next += part.len;
            }
            let whole = geometry.bytes(round, Span::input(0, geometry.chunks as u32));
            assert_eq!(whole.offset + whole.len, next);
        }
        assert_eq!(next as u64, geometry.count * geometry.element_bytes);
    }

    #[test]
    fn scratch_chunks_have_room_for_the_chunk_that_they_are_like() {
        for count in [1_u64, 100, 1000, 100_000] {
            let geometry = Geometry::new(Extent::Whole(count), 4, 3, &[1, 1, 0, 2], 1 << 14);
            for round in 0..geometry.rounds() {
                for (index, like) in [1, 1, 0, 2].into_iter().enumerate() {
                    let part = geometry.bytes(round, Span::scratch(index as u32, 1));
                    assert_eq!(part.len, geometry.bytes(round, Span::input(like, 1)).len);
                    assert!(
                        part.offset + part.len
                            <= (index + 1) * geometry.scratch_stride_bytes as usize
                    );
                }
            }
            assert_eq!(geometry.scratch_bytes(), 4 * geometry.scratch_stride_bytes as usize);
        }
    }

    #[test]
    fn rounds_cover_blocks_that_differ_in_length() {
        let (given, got) = ([0_usize, 1000, 17, 1, 300], [5_usize, 0, 2000, 64, 1]);
        let mut geometry = Geometry::new(Extent::Varied, 4, 5, &[1, 4], 5 * 256);
        geometry.vary(&given, &got);
        assert_eq!(geometry.rounds(), 2000_u64.div_ceil(64));
        for (lengths, of) in [(given, Span::input as fn(u32, u32) -> Span), (got, Span::output)] {
            let mut begin = 0;
            for (block, length) in lengths.into_iter().enumerate() {
                let mut next = begin;
                for round in 0..geometry.rounds() {
                    let part = geometry.bytes(round, of(block as u32, 1));
                    assert!(part.len == 0 || part.offset == next, "round {round} of {block}");
                    next += part.len;
                }
                begin += 4 * length;
                assert_eq!(next, begin);
            }
        }
        for round in 0..geometry.rounds() {
            let like = geometry.bytes(round, Span::input(4, 1)).len;
            let part = geometry.bytes(round, Span::scratch(1, 1));
            assert_eq!(part.len, like);
            assert!(part.offset + part.len <= geometry.scratch_bytes());
        }
        // Other lengths in the same place.
        geometry.vary(&[1; 5], &[0; 5]);
        assert_eq!(geometry.rounds(), 1);
        assert_eq!(geometry.bytes(0, Span::input(3, 1)), ByteSpan { offset: 12, len: 4 });
    }

    #[test]
    fn more_than_four_gibibytes() {
        let geometry = Geometry::new(Extent::Whole(3 << 30), 4, 2, &[], 1 << 20);
        let last = geometry.bytes(geometry.rounds() - 1, Span::output(1, 1));
        assert_eq!(last.offset + last.len, 12 << 30);
    }

    #[test]
    fn rounds_of_blocks_cover_every_block() {
        for count in [0_u64, 1, 15, 16, 17, 1000, 4097] {
            for (chunks, round_bytes) in [(1_u32, 64), (3, 100), (7, 1 << 12), (64, 1 << 20)] {
                let scratch: Vec<u32> = (0..chunks).collect();
                let extent = Extent::Blocks(count);
                let geometry = Geometry::new(extent, 4, chunks, &scratch, round_bytes);
                for block in 0..chunks {
                    let mut next = u64::from(block) * count * 4;
                    for round in 0..geometry.rounds() {
                        let part = geometry.bytes(round, Span::output(block, 1));
                        assert_eq!(part.offset as u64, next, "{geometry:?}, {round}, {block}");
                        assert!(part.len <= geometry.longest_chunk_bytes());
                        let like = geometry.bytes(round, Span::scratch(block, 1));
                        assert_eq!(like.len, part.len);
                        next += part.len as u64;
                    }
                    assert_eq!(next, u64::from(block + 1) * count * 4);
                }
                if geometry.rounds() == 1 && chunks > 1 {
                    // A run of blocks is one span, in scratch too.
                    for span in [Span::output(1, chunks - 1), Span::scratch(1, chunks - 1)] {
                        let part = geometry.bytes(0, span);
                        assert_eq!(part.offset as u64, count * 4, "{geometry:?}");
                        assert_eq!(part.len as u64, u64::from(chunks - 1) * count * 4);
                    }
                }
            }
        }
    }
}
