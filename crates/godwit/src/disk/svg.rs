//! Draws the map of a disk as an SVG picture: rows of cells, from the start of the disk to its end.
//!
//! Every cell stands for the same number of bytes and is divided, from the bottom up, in proportion to what its bytes
//! are, so that nothing that is there disappears however large the disk is. Data has one colour per layer, in a
//! palette that people with colour-blindness can tell apart; a partly present block is hatched, and space that was given
//! and never written is dotted.

use std::collections::BTreeMap;
use std::fmt::{self, Write};

use block::ExtentState;

use super::size::Size;

/// Cells in a row.
const COLUMNS: u64 = 128;
/// Rows at most; a small disk has fewer.
const ROWS_MAX: u64 = 48;
/// Bytes that a cell stands for at least.
const CELL_BYTES_MIN: u64 = 4096;
const CELL_WIDTH: f64 = 7.0;
const CELL_HEIGHT: f64 = 12.0;
const ROW_PITCH: f64 = 14.0;
const MARGIN: f64 = 24.0;
const LABEL_WIDTH: f64 = 84.0;
const LEGEND_PITCH: f64 = 20.0;
/// What is there at all is drawn at least this high, in parts of a cell.
const SHARE_MIN: f64 = 0.12;
/// Data colours by depth of the layer (Okabe and Ito's palette), taken in turn in longer chains.
const LAYER_COLOURS: [&str; 6] = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00"];

/// A stretch of the disk as the picture needs it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stretch {
    pub(crate) start: u64,
    pub(crate) len: u64,
    pub(crate) state: ExtentState,
    /// Layer that decides, 0 for the top.
    pub(crate) depth: u32,
    /// Whether it is known to read as zeroes.
    pub(crate) zeroes: bool,
}

/// What the picture shows.
#[derive(Debug)]
pub(crate) struct Picture<'a> {
    /// What stands above it.
    pub(crate) title: &'a str,
    /// Size of the disk in bytes.
    pub(crate) size: u64,
    /// Names of the layers, from the top.
    pub(crate) layers: &'a [String],
    /// The disk's stretches, ascending.
    pub(crate) stretches: &'a [Stretch],
}

/// What a byte is, as far as the picture tells: the order is that of drawing, from the bottom of a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Data { depth: u32, content: Content },
    Zero,
    Unmapped,
    Undefined,
    NotPresent,
}

/// What a layer's file has for an extent whose bytes it stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Content {
    /// Bytes.
    Bytes,
    /// Bytes, in a block of which other sectors come from the parent.
    PartOfBlock,
    /// A hole: space that was given and not written.
    Empty,
}

impl Kind {
    fn of(stretch: &Stretch) -> Self {
        let data = |content| Self::Data { depth: stretch.depth, content };
        match stretch.state {
            ExtentState::Present | ExtentState::PartiallyPresent if stretch.zeroes => data(Content::Empty),
            ExtentState::Present => data(Content::Bytes),
            ExtentState::PartiallyPresent => data(Content::PartOfBlock),
            ExtentState::Zero => Self::Zero,
            ExtentState::Unmapped => Self::Unmapped,
            ExtentState::Undefined => Self::Undefined,
            ExtentState::NotPresent => Self::NotPresent,
        }
    }

    fn fill(self) -> String {
        match self {
            Self::Data { depth, content: Content::Bytes } => layer_colour(depth).to_owned(),
            Self::Data { depth, content: Content::PartOfBlock } => pattern_url("partial", depth),
            Self::Data { depth, content: Content::Empty } => pattern_url("empty", depth),
            Self::Zero => "#b8bec6".to_owned(),
            Self::Unmapped => "url(#unmapped)".to_owned(),
            Self::Undefined => "#e3d7ee".to_owned(),
            Self::NotPresent => "#f1f3f5".to_owned(),
        }
    }

    fn label(self, layers: &[String]) -> String {
        let layer = |depth: u32| {
            let name = layers.get(depth as usize).map_or("?", String::as_str);
            if layers.len() > 1 { format!(" in layer {depth}, {name}") } else { String::new() }
        };
        match self {
            Self::Data { depth, content: Content::Bytes } => format!("present{}", layer(depth)),
            Self::Data { depth, content: Content::PartOfBlock } => {
                format!("present in part of a block{}", layer(depth))
            }
            Self::Data { depth, content: Content::Empty } => {
                format!("present, never written{}", layer(depth))
            }
            Self::Zero => "zero".to_owned(),
            Self::Unmapped => "unmapped by the guest".to_owned(),
            Self::Undefined => "undefined".to_owned(),
            Self::NotPresent => "not present".to_owned(),
        }
    }
}

fn pattern_url(pattern: &str, depth: u32) -> String {
    format!("url(#{pattern}{})", depth as usize % LAYER_COLOURS.len())
}

fn layer_colour(depth: u32) -> &'static str {
    LAYER_COLOURS[depth as usize % LAYER_COLOURS.len()]
}

/// How many bytes of each kind there are.
type Shares = BTreeMap<Kind, u64>;

/// The picture as a text of SVG.
pub(crate) fn draw(picture: &Picture<'_>) -> String {
    let grid = Grid::over(picture);
    let mut svg = String::new();
    grid.write(picture, &mut svg).expect("a string takes what is written to it");
    svg
}

/// The cells of a picture.
struct Grid {
    cell_bytes: u64,
    cells: Vec<Shares>,
    total: Shares,
}

impl Grid {
    fn over(picture: &Picture<'_>) -> Self {
        let cell_bytes = picture.size.div_ceil(COLUMNS * ROWS_MAX).next_power_of_two().max(CELL_BYTES_MIN);
        let count = usize::try_from(picture.size.div_ceil(cell_bytes)).expect("a picture has few cells");
        let mut grid = Self { cell_bytes, cells: vec![Shares::new(); count], total: Shares::new() };
        for stretch in picture.stretches {
            grid.add(stretch, picture.size);
        }
        grid
    }

    fn add(&mut self, stretch: &Stretch, size: u64) {
        let kind = Kind::of(stretch);
        let end = stretch.start.saturating_add(stretch.len).min(size);
        let mut at = stretch.start;
        while at < end {
            let index = at / self.cell_bytes;
            let stop = ((index + 1) * self.cell_bytes).min(end);
            *self.cells[index as usize].entry(kind).or_default() += stop - at;
            *self.total.entry(kind).or_default() += stop - at;
            at = stop;
        }
    }

    fn write(&self, picture: &Picture<'_>, svg: &mut String) -> fmt::Result {
        let rows = (self.cells.len() as u64).div_ceil(COLUMNS).max(1);
        let top = MARGIN + 52.0;
        let legend_top = top + rows as f64 * ROW_PITCH + 26.0;
        let width = MARGIN * 2.0 + LABEL_WIDTH + COLUMNS as f64 * CELL_WIDTH;
        let height = legend_top + self.total.len() as f64 * LEGEND_PITCH + MARGIN;
        let title = escape(picture.title);
        writeln!(
            svg,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
             height=\"{height}\" role=\"img\" aria-labelledby=\"title description\" \
             font-family=\"system-ui, sans-serif\" font-size=\"12\">"
        )?;
        writeln!(svg, "<title id=\"title\">{title}</title>")?;
        writeln!(svg, "<desc id=\"description\">{}</desc>", escape(&self.describe(picture)))?;
        write_patterns(svg)?;
        writeln!(svg, "<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>")?;
        let baseline = MARGIN + 16.0;
        writeln!(
            svg,
            "<text x=\"{MARGIN}\" y=\"{baseline}\" font-size=\"18\" font-weight=\"600\">{title}</text>"
        )?;
        let (size, cell) = (Size::of(picture.size), Size::of(self.cell_bytes));
        let row = Size::of(self.cell_bytes * COLUMNS);
        let y = baseline + 20.0;
        writeln!(
            svg,
            "<text x=\"{MARGIN}\" y=\"{y}\" fill=\"#495057\">{size}; a row is {row}, a cell {cell}</text>"
        )?;
        for (index, cells) in self.cells.chunks(COLUMNS as usize).enumerate() {
            self.write_row(picture, svg, index, cells, top + index as f64 * ROW_PITCH)?;
        }
        self.write_legend(picture, svg, legend_top)?;
        writeln!(svg, "</svg>")
    }

    fn write_row(
        &self,
        picture: &Picture<'_>,
        svg: &mut String,
        row: usize,
        cells: &[Shares],
        y: f64,
    ) -> fmt::Result {
        let first = row * COLUMNS as usize;
        let offset = Size::of(first as u64 * self.cell_bytes);
        let (x, baseline) = (MARGIN + LABEL_WIDTH - 8.0, y + CELL_HEIGHT - 2.0);
        writeln!(
            svg,
            "<text x=\"{x}\" y=\"{baseline}\" text-anchor=\"end\" font-size=\"10\" fill=\"#495057\">{offset}</text>"
        )?;
        let mut start = 0;
        while start < cells.len() {
            // Neighbours that look the same become one shape; mixed cells stay single.
            let same = |cell: &&Shares| cell.len() == 1 && cell.keys().eq(cells[start].keys());
            let run = cells[start..].iter().take_while(same).count().max(1);
            let (from, to) = ((first + start) as u64, (first + start + run) as u64);
            let x = MARGIN + LABEL_WIDTH + start as f64 * CELL_WIDTH;
            let label = self.label_run(picture, from, to, &cells[start]);
            write!(svg, "<g><title>{}</title>", escape(&label))?;
            write_bars(svg, &cells[start], x, y, run as f64 * CELL_WIDTH)?;
            writeln!(svg, "</g>")?;
            start += run;
        }
        Ok(())
    }

    fn label_run(&self, picture: &Picture<'_>, from: u64, to: u64, shares: &Shares) -> String {
        let (start, end) = (from * self.cell_bytes, (to * self.cell_bytes).min(picture.size));
        let kinds: Vec<String> = shares.keys().map(|kind| kind.label(picture.layers)).collect();
        format!("{} to {}: {}", Size::of(start), Size::of(end), kinds.join("; "))
    }

    fn write_legend(&self, picture: &Picture<'_>, svg: &mut String, top: f64) -> fmt::Result {
        for (index, (kind, bytes)) in self.total.iter().enumerate() {
            let y = top + index as f64 * LEGEND_PITCH;
            let (fill, label) = (kind.fill(), escape(&kind.label(picture.layers)));
            let percent = *bytes as f64 * 100.0 / picture.size as f64;
            let (x, text_x, text_y) = (MARGIN + LABEL_WIDTH, MARGIN + LABEL_WIDTH + 24.0, y + 11.0);
            writeln!(
                svg,
                "<rect x=\"{x}\" y=\"{y}\" width=\"16\" height=\"12\" fill=\"{fill}\" stroke=\"#868e96\" \
                 stroke-width=\"0.5\"/><text x=\"{text_x}\" y=\"{text_y}\">{label}: {} ({percent:.1} %)</text>",
                Size::of(*bytes)
            )?;
        }
        Ok(())
    }

    /// The whole picture in a sentence, for people who do not see it.
    fn describe(&self, picture: &Picture<'_>) -> String {
        let kinds: Vec<String> = self
            .total
            .iter()
            .map(|(kind, bytes)| format!("{} {}", Size::of(*bytes), kind.label(picture.layers)))
            .collect();
        format!("Map of a disk of {}: {}.", Size::of(picture.size), kinds.join(", "))
    }
}

/// Draws what a cell, or a run of equal ones, is made of, stacked from the bottom.
fn write_bars(svg: &mut String, shares: &Shares, x: f64, y: f64, width: f64) -> fmt::Result {
    let total: u64 = shares.values().sum();
    let raised = |bytes: u64| (bytes as f64 / total as f64).max(SHARE_MIN);
    let sum: f64 = shares.values().map(|&bytes| raised(bytes)).sum();
    let mut bottom = y + CELL_HEIGHT;
    for (kind, &bytes) in shares {
        let height = CELL_HEIGHT * raised(bytes) / sum;
        bottom -= height;
        let fill = kind.fill();
        write!(
            svg,
            "<rect x=\"{x}\" y=\"{bottom:.2}\" width=\"{width}\" height=\"{height:.2}\" fill=\"{fill}\"/>"
        )?;
    }
    Ok(())
}

fn write_patterns(svg: &mut String) -> fmt::Result {
    writeln!(svg, "<defs>")?;
    for (index, colour) in LAYER_COLOURS.iter().enumerate() {
        write_pattern(svg, &format!("partial{index}"), "#ffffff", colour, 2.0)?;
        write_dots(svg, &format!("empty{index}"), colour)?;
    }
    write_pattern(svg, "unmapped", "#ffffff", "#868e96", 0.8)?;
    writeln!(svg, "</defs>")
}

fn write_pattern(svg: &mut String, id: &str, ground: &str, stroke: &str, width: f64) -> fmt::Result {
    writeln!(
        svg,
        "<pattern id=\"{id}\" width=\"4\" height=\"4\" patternUnits=\"userSpaceOnUse\" \
         patternTransform=\"rotate(45)\"><rect width=\"4\" height=\"4\" fill=\"{ground}\"/>\
         <line x1=\"0\" y1=\"0\" x2=\"0\" y2=\"4\" stroke=\"{stroke}\" stroke-width=\"{width}\"/></pattern>"
    )
}

fn write_dots(svg: &mut String, id: &str, colour: &str) -> fmt::Result {
    writeln!(
        svg,
        "<pattern id=\"{id}\" width=\"4\" height=\"4\" patternUnits=\"userSpaceOnUse\">\
         <rect width=\"4\" height=\"4\" fill=\"#ffffff\"/><circle fill=\"{colour}\" cx=\"2\" cy=\"2\" r=\"1\"/></pattern>"
    )
}

/// `text` as it may stand in an element; characters that XML cannot hold are replaced.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            c if c.is_control() || ('\u{fffe}'..='\u{ffff}').contains(&c) => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn stretch(start: u64, len: u64, state: ExtentState, depth: u32) -> Stretch {
        Stretch { start, len, state, depth, zeroes: !state.is_data() }
    }

    fn picture_of(size: u64, stretches: &[Stretch]) -> String {
        let layers = ["child.vhdx".to_owned(), "a&b.vhdx".to_owned()];
        draw(&Picture { title: "disk <1>", size, layers: &layers, stretches })
    }

    #[test]
    fn the_legend_counts_every_byte_once() {
        let svg = picture_of(
            3 * MIB,
            &[
                stretch(0, MIB, ExtentState::Present, 0),
                stretch(MIB, MIB / 2, ExtentState::Present, 1),
                stretch(MIB + MIB / 2, MIB / 2, ExtentState::Zero, 0),
                stretch(2 * MIB, MIB, ExtentState::Unmapped, 0),
            ],
        );
        assert!(svg.contains(">present in layer 0, child.vhdx: 1 MiB (33.3 %)<"), "{svg}");
        assert!(svg.contains(">present in layer 1, a&amp;b.vhdx: 512 KiB (16.7 %)<"), "{svg}");
        assert!(svg.contains(">zero: 512 KiB (16.7 %)<"));
        assert!(svg.contains(">unmapped by the guest: 1 MiB (33.3 %)<"));
        assert!(svg.contains("<title id=\"title\">disk &lt;1&gt;</title>"));
    }

    #[test]
    fn a_single_sector_on_the_largest_disk_is_still_seen() {
        let size = 64 << 40;
        let at = 5 << 40;
        let svg = picture_of(
            size,
            &[
                stretch(0, at, ExtentState::NotPresent, 0),
                stretch(at, 512, ExtentState::Present, 0),
                stretch(at + 512, size - at - 512, ExtentState::NotPresent, 0),
            ],
        );
        let drawn = svg.matches(&format!("fill=\"{}\"/>", layer_colour(0))).count();
        assert_eq!(drawn, 1, "one cell");
        assert!(svg.contains("fill=\"#0072b2\" stroke"), "one line of the legend");
        assert!(svg.len() < 64 << 10, "runs of equal cells are one shape: {} bytes", svg.len());
    }

    #[test]
    fn stretches_beyond_the_disk_and_empty_disks_are_harmless() {
        let svg = picture_of(
            MIB,
            &[stretch(0, 4 * MIB, ExtentState::Zero, 0), stretch(u64::MAX, 1, ExtentState::Zero, 0)],
        );
        assert!(svg.contains(">zero: 1 MiB (100.0 %)<"));
        assert!(picture_of(0, &[]).ends_with("</svg>\n"));
    }
}
