//! The process's own metrics, with the names of Prometheus' client libraries, read from `/proc` at each scrape.
//!
//! See proc(5) for the fields. Without a readable `/proc` these families are not exposed.

use std::fs;

use nix::unistd::{SysconfVar, sysconf};

use super::{MetricFamily, MetricValue};

/// `/proc/self/stat` after the name in parentheses: the fields of proc(5) from the third.
struct Stat<'a>(Vec<&'a str>);

impl Stat<'_> {
    /// The field with this number in proc(5).
    fn field(&self, number: usize) -> Option<f64> {
        const FIRST: usize = 3;
        self.0.get(number.checked_sub(FIRST)?)?.parse().ok()
    }
}

/// The metrics of the process.
pub fn families() -> Vec<MetricFamily> {
    [usage(), files()].into_iter().flatten().flatten().collect()
}

fn usage() -> Option<Vec<MetricFamily>> {
    let text = fs::read_to_string("/proc/self/stat").ok()?;
    let boot = fs::read_to_string("/proc/stat").ok()?;
    read_usage(
        &text,
        &boot,
        constant(SysconfVar::CLK_TCK)?,
        constant(SysconfVar::PAGE_SIZE)?,
    )
}

fn constant(name: SysconfVar) -> Option<f64> {
    let value = sysconf(name).ok()??;
    i32::try_from(value).ok().map(f64::from)
}

fn read_usage(stat: &str, boot: &str, ticks: f64, page: f64) -> Option<Vec<MetricFamily>> {
    // The name may contain spaces and parentheses.
    let (_, fields) = stat.rsplit_once(')')?;
    let stat = Stat(fields.split_whitespace().collect());
    let booted = boot.lines().find_map(|line| line.strip_prefix("btime "))?;
    let booted: f64 = booted.trim().parse().ok()?;
    let (user, system, started) = (stat.field(14)?, stat.field(15)?, stat.field(22)?);
    let (address_space, resident) = (stat.field(23)?, stat.field(24)?);
    Some(vec![
        MetricFamily::new(
            "process_cpu_seconds",
            "User and system CPU time",
            MetricValue::FloatCounter((user + system) / ticks),
        ),
        MetricFamily::new(
            "process_start_time_seconds",
            "Start time of the process since the Unix epoch",
            MetricValue::FloatGauge(booted + started / ticks),
        ),
        MetricFamily::new(
            "process_resident_memory_bytes",
            "Resident memory size",
            MetricValue::FloatGauge(resident * page),
        ),
        MetricFamily::new(
            "process_virtual_memory_bytes",
            "Virtual memory size",
            MetricValue::FloatGauge(address_space),
        ),
    ])
}

fn files() -> Option<Vec<MetricFamily>> {
    let open = fs::read_dir("/proc/self/fd").ok()?.count();
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let most = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))
        .and_then(|limit| limit.split_whitespace().next()?.parse().ok());
    let open = MetricFamily::new(
        "process_open_fds",
        "Open file descriptors",
        MetricValue::Gauge(i64::try_from(open).ok()?),
    );
    let most = most.map(|most| {
        MetricFamily::new(
            "process_max_fds",
            "Maximum number of open file descriptors",
            MetricValue::Gauge(most),
        )
    });
    Some([Some(open), most].into_iter().flatten().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_are_found_whatever_the_process_is_called() {
        let stat = "7 (a ) b) S 1 7 7 0 -1 4194560 9 0 0 0 250 150 0 0 20 0 4 0 1000 4096 3 18446744073709551615";
        let families = read_usage(stat, "cpu 1\nbtime 1700000000\n", 100.0, 4096.0).unwrap();
        let values: Vec<&MetricValue> = families.iter().map(|f| &f.series[0].value).collect();
        assert_eq!(
            values,
            [
                &MetricValue::FloatCounter(4.0),
                &MetricValue::FloatGauge(1_700_000_010.0),
                &MetricValue::FloatGauge(12_288.0),
                &MetricValue::FloatGauge(4096.0)
            ]
        );
    }

    #[test]
    fn what_cannot_be_read_is_left_out() {
        assert_eq!(read_usage("", "", 100.0, 4096.0), None);
    }
}
