//! What was measured, as text while it goes, as a table of ratios at the end, and as JSON.

use serde::{Serialize, Serializer};

use crate::contender::{Contender, Format};
use crate::machine::Machine;

/// Everything that one run has measured.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    machine: Machine,
    rows: Vec<Row>,
}

/// Contenders that did the same.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    name: String,
    unit: Unit,
    cells: Vec<Cell>,
    ratios: Vec<Ratio>,
}

/// What a row counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    PerSecond,
    MebibytesPerSecond,
    Milliseconds,
    Mebibytes,
}

/// One contender's figures: the median of its repetitions, and how far they spread.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Cell {
    contender: String,
    #[serde(skip)]
    is_ours: bool,
    #[serde(skip)]
    is_vhdx: bool,
    #[serde(serialize_with = "serialize_spread")]
    value: Vec<f64>,
    /// Microseconds of the server's CPU time for one request.
    #[serde(serialize_with = "serialize_spread", skip_serializing_if = "Vec::is_empty")]
    cpu_us: Vec<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    peak: Option<f64>,
}

/// One of ours divided by another.
#[derive(Debug, Serialize)]
struct Ratio {
    ours: String,
    to: String,
    /// Whether `to` is the best of the peers in this row.
    to_best_peer: bool,
    value: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu: Option<f64>,
}

/// The median of some samples, and their extremes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

impl Spread {
    fn of(samples: &[f64]) -> Option<Self> {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        };
        Some(Self { median, min, max })
    }
}

fn serialize_spread<S: Serializer>(samples: &[f64], serializer: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Samples<'a> {
        #[serde(flatten)]
        spread: Option<Spread>,
        samples: &'a [f64],
    }
    Samples { spread: Spread::of(samples), samples }.serialize(serializer)
}

impl Unit {
    fn name(self) -> &'static str {
        match self {
            Self::PerSecond => "requests/s",
            Self::MebibytesPerSecond => "MiB/s",
            Self::Milliseconds => "ms",
            Self::Mebibytes => "MiB",
        }
    }

    fn more_is_better(self) -> bool {
        match self {
            Self::PerSecond | Self::MebibytesPerSecond => true,
            Self::Milliseconds | Self::Mebibytes => false,
        }
    }
}

impl Serialize for Unit {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl Cell {
    pub(crate) fn new(contender: Contender) -> Self {
        Self {
            contender: contender.name(),
            is_ours: contender.is_ours(),
            is_vhdx: contender.format == Format::Vhdx,
            value: Vec::new(),
            cpu_us: Vec::new(),
            peak: None,
        }
    }

    /// Adds what one repetition has shown.
    pub(crate) fn push(&mut self, value: f64, cpu_us: Option<f64>) {
        self.value.push(value);
        self.cpu_us.extend(cpu_us);
    }

    pub(crate) fn set_peak(&mut self, peak: f64) {
        self.peak = Some(peak);
    }

    fn median(&self) -> f64 {
        Spread::of(&self.value).map_or(f64::NAN, |spread| spread.median)
    }

    fn ratio_to(&self, other: &Self, to_best_peer: bool) -> Ratio {
        let cpu = Spread::of(&self.cpu_us).zip(Spread::of(&other.cpu_us));
        Ratio {
            ours: self.contender.clone(),
            to: other.contender.clone(),
            to_best_peer,
            value: self.median() / other.median(),
            cpu: cpu.map(|(ours, others)| ours.median / others.median),
        }
    }

    fn print(&self, unit: Unit) {
        let Some(value) = Spread::of(&self.value) else { return };
        let (name, unit, digits) = (&self.contender, unit.name(), if value.median < 1000.0 { 1 } else { 0 });
        let Spread { median, min, max } = value;
        print!("  {name:20} {median:10.digits$} {unit:10} {:>19}", format!("{min:.digits$}–{max:.digits$}"));
        if let Some(cpu) = Spread::of(&self.cpu_us) {
            print!("   CPU {:8.2} µs ({:.2}–{:.2})", cpu.median, cpu.min, cpu.max);
        }
        if let Some(peak) = self.peak {
            print!("   peak {peak:.1}");
        }
        println!();
    }
}

impl Row {
    pub(crate) fn new(name: String, unit: Unit, cells: Vec<Cell>) -> Self {
        let ratios = ratios(unit, &cells);
        Self { name, unit, cells, ratios }
    }

    fn print(&self) {
        println!("\n{}", self.name);
        self.cells.iter().for_each(|cell| cell.print(self.unit));
        for Ratio { ours, to, to_best_peer, value, cpu } in &self.ratios {
            let cpu = cpu.map_or(String::new(), |cpu| format!(", CPU {cpu:.2}"));
            let best = if *to_best_peer { " (best peer)" } else { "" };
            println!("  {ours} / {to}{best}: {value:.2}{cpu}");
        }
    }
}

/// Each of ours to each peer, and our VHDX to our raw.
fn ratios(unit: Unit, cells: &[Cell]) -> Vec<Ratio> {
    let (ours, peers): (Vec<&Cell>, Vec<&Cell>) = cells.iter().partition(|cell| cell.is_ours);
    let worst_first = |a: &&&Cell, b: &&&Cell| {
        let order = a.median().total_cmp(&b.median());
        if unit.more_is_better() { order } else { order.reverse() }
    };
    let best = peers.iter().max_by(worst_first).copied();
    let is_best = |peer: &Cell| best.is_some_and(|best| std::ptr::eq(best, peer));
    let mut ratios: Vec<Ratio> =
        ours.iter().flat_map(|ours| peers.iter().map(|peer| ours.ratio_to(peer, is_best(peer)))).collect();
    let ours_as = |vhdx: bool| ours.iter().find(|cell| cell.is_vhdx == vhdx);
    if let (Some(vhdx), Some(raw)) = (ours_as(true), ours_as(false)) {
        ratios.push(vhdx.ratio_to(raw, false));
    }
    ratios
}

impl Report {
    pub(crate) fn new(machine: Machine) -> Self {
        Self { machine, rows: Vec::new() }
    }

    pub(crate) fn machine(&self) -> &Machine {
        &self.machine
    }

    pub(crate) fn print_machine(&self) {
        self.machine.print();
    }

    /// Takes a row, and prints it.
    pub(crate) fn add(&mut self, row: Row) {
        row.print();
        self.rows.push(row);
    }

    /// Prints the ratios of all rows as a table in Markdown.
    pub(crate) fn print_summary(&self) {
        println!("\n| Row | Ours | Ours in the row's unit | Best peer | Ratio | CPU ratio | VHDX/raw |");
        println!("| --- | --- | ---: | --- | ---: | ---: | ---: |");
        for row in &self.rows {
            for ratio in row.ratios.iter().filter(|ratio| ratio.to_best_peer) {
                println!("{}", summary_line(row, ratio));
            }
        }
    }
}

fn summary_line(row: &Row, ratio: &Ratio) -> String {
    let two = |value: Option<f64>| value.map_or(String::new(), |value| format!("{value:.2}"));
    let ours = row.cells.iter().find(|cell| cell.contender == ratio.ours);
    let amount = ours.map_or(f64::NAN, Cell::median);
    let is_ours = |name: &str| row.cells.iter().any(|cell| cell.is_ours && cell.contender == name);
    let to_raw = row.ratios.iter().find(|other| other.ours == ratio.ours && is_ours(&other.to));
    format!(
        "| {} | {} | {amount:.*} {} | {} | {:.2} | {} | {} |",
        row.name,
        ratio.ours,
        if amount < 1000.0 { 1 } else { 0 },
        row.unit.name(),
        ratio.to,
        ratio.value,
        two(ratio.cpu),
        two(to_raw.map(|ratio| ratio.value)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contender::Program;

    fn cell(program: Program, format: Format, samples: &[f64], cpu_us: f64) -> Cell {
        let mut cell = Cell::new(Contender::new(program, format));
        samples.iter().for_each(|sample| cell.push(*sample, Some(cpu_us)));
        cell
    }

    #[test]
    fn the_median_of_an_even_number_lies_between_the_middle_two() {
        assert_eq!(Spread::of(&[4.0, 1.0, 3.0, 2.0]), Some(Spread { median: 2.5, min: 1.0, max: 4.0 }));
        assert_eq!(Spread::of(&[]), None);
    }

    #[test]
    fn each_of_ours_is_compared_with_each_peer_and_vhdx_with_raw() {
        let cells = vec![
            cell(Program::Godwit, Format::Raw, &[100.0], 10.0),
            cell(Program::Godwit, Format::Vhdx, &[90.0, 90.0, 10.0], 12.0),
            cell(Program::Nbdkit, Format::Raw, &[50.0], 20.0),
            cell(Program::Qemu, Format::Raw, &[45.0], 40.0),
        ];
        let row = Row::new("row".into(), Unit::PerSecond, cells);
        let found: Vec<_> = row.ratios.iter().map(|r| (&*r.ours, &*r.to, r.to_best_peer, r.value)).collect();
        let expected = [
            ("godwit raw", "nbdkit raw", true, 2.0),
            ("godwit raw", "qemu raw", false, 100.0 / 45.0),
            ("godwit vhdx", "nbdkit raw", true, 1.8),
            ("godwit vhdx", "qemu raw", false, 2.0),
            ("godwit vhdx", "godwit raw", false, 0.9),
        ];
        assert_eq!(found, expected);
        assert_eq!(row.ratios[0].cpu, Some(0.5));
    }

    #[test]
    fn the_best_of_times_is_the_shortest() {
        let cells = vec![
            cell(Program::Godwit, Format::Vhdx, &[3.0], 1.0),
            cell(Program::Qemu, Format::Vhdx, &[9.0], 1.0),
            cell(Program::Qemu, Format::Qcow2, &[6.0], 1.0),
        ];
        let row = Row::new("row".into(), Unit::Milliseconds, cells);
        let best: Vec<_> = row.ratios.iter().filter(|ratio| ratio.to_best_peer).collect();
        assert_eq!((best.len(), &*best[0].to, best[0].value), (1, "qemu qcow2", 0.5));
    }
}
