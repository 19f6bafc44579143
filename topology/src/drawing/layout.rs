//! How large the boxes are, and where. Sizes come from the inside, places from the outside.

use super::blocks::{Block, Kind};
use super::canvas::Area;

const MARGIN: f64 = 7.0;
const BETWEEN: f64 = 8.0;

/// Above each row, so that the links of its boxes are to be seen.
pub(super) const ABOVE_ROW: f64 = 13.0;

/// Around the links between NUMA nodes.
const BETWEEN_NUMA: f64 = 36.0;

const LEAST_WIDTH: f64 = 74.0;

/// Puts the boxes of the NUMA nodes side by side, all equally high, and returns what they cover.
pub(super) fn place_side_by_side(blocks: &mut [Block], x: f64, y: f64) -> Area {
    let sizes: Vec<(f64, f64)> = blocks.iter().map(size).collect();
    let height = sizes.iter().map(|size| size.1).fold(0.0, f64::max);
    let mut next = x;
    for (block, (width, _)) in blocks.iter_mut().zip(sizes) {
        place(block, Area { x: next, y, width, height });
        next += width + BETWEEN_NUMA;
    }
    Area { x, y, width: (next - BETWEEN_NUMA - x).max(0.0), height }
}

/// Where the lines of a box are: the lower edge of each.
pub(super) fn lines(block: &Block) -> impl Iterator<Item = f64> + '_ {
    let mut y = block.area.y + MARGIN - 2.0;
    block.words.iter().map(move |words| {
        y += line_height(words.size);
        y
    })
}

fn line_height(size: f64) -> f64 {
    size + 3.0
}

fn words_height(block: &Block) -> f64 {
    block.words.iter().map(|words| line_height(words.size)).sum()
}

fn size(block: &Block) -> (f64, f64) {
    let words = block.words.iter().map(|words| words.width()).fold(0.0, f64::max);
    let (mut width, mut height) = (words, words_height(block));
    for row in &block.rows {
        let (row_width, row_height) = row_size(row);
        width = width.max(row_width);
        height += ABOVE_ROW + row_height;
    }
    ((width + 2.0 * MARGIN).max(LEAST_WIDTH), height + 2.0 * MARGIN)
}

fn row_size(row: &[Block]) -> (f64, f64) {
    let sizes: Vec<(f64, f64)> = row.iter().map(size).collect();
    let width: f64 = sizes.iter().map(|size| size.0).sum();
    let between = BETWEEN * row.len().saturating_sub(1) as f64;
    (width + between, sizes.iter().map(|size| size.1).fold(0.0, f64::max))
}

/// The last row of GPUs is at the lower edge, the others follow the words.
fn place(block: &mut Block, area: Area) {
    block.area = area;
    let mut y = area.y + MARGIN + words_height(block);
    let rows = block.rows.len();
    for (number, row) in block.rows.iter_mut().enumerate() {
        let (width, height) = row_size(row);
        let is_last = number + 1 == rows;
        let has_gpus = row.iter().any(Block::has_gpu);
        y += ABOVE_ROW;
        let room = if is_last { area.bottom() - MARGIN - y } else { height };
        let x = area.x + (area.width - width) / 2.0;
        place_row(row, Area { x, y, width, height: room }, has_gpus);
        y += height;
    }
}

/// GPUs stand on the lower edge; boxes with GPUs in them fill the whole height.
fn place_row(row: &mut [Block], room: Area, has_gpus: bool) {
    let mut x = room.x;
    for block in row {
        let (width, height) = size(block);
        let (y, height) = match (has_gpus, block.kind) {
            (true, Kind::Bridge) => (room.y, room.height),
            (true, _) => (room.bottom() - height, height),
            (false, _) => (room.y, height),
        };
        place(block, Area { x, y, width, height });
        x += width + BETWEEN;
    }
}
