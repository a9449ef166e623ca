//! The process as the kernel sees it, under the names that Prometheus' own clients give: read from `/proc` at each scrape.
//!
//! See proc(5) for the fields. Where there is no `/proc`, or it cannot be read, the families are left out.

use std::fs;

use nix::unistd::{SysconfVar, sysconf};

use super::{Family, Value};

/// `/proc/self/stat` after the name in brackets: the fields of proc(5), counted from the third.
struct Stat<'a>(Vec<&'a str>);

impl Stat<'_> {
    /// The field of that number in proc(5).
    fn field(&self, number: usize) -> Option<f64> {
        const FIRST: usize = 3;
        self.0.get(number.checked_sub(FIRST)?)?.parse().ok()
    }
}

/// What can be read.
pub fn families() -> Vec<Family> {
    [usage(), files()].into_iter().flatten().flatten().collect()
}

fn usage() -> Option<Vec<Family>> {
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

fn read_usage(stat: &str, boot: &str, ticks: f64, page: f64) -> Option<Vec<Family>> {
    // The name may hold spaces and brackets itself.
    let (_, fields) = stat.rsplit_once(')')?;
    let stat = Stat(fields.split_whitespace().collect());
    let booted = boot.lines().find_map(|line| line.strip_prefix("btime "))?;
    let booted: f64 = booted.trim().parse().ok()?;
    let (user, system, started) = (stat.field(14)?, stat.field(15)?, stat.field(22)?);
    let (address_space, resident) = (stat.field(23)?, stat.field(24)?);
    Some(vec![
        Family::one(
            "process_cpu_seconds",
            "User and system time that the process has used",
            Value::Sum((user + system) / ticks),
        ),
        Family::one(
            "process_start_time_seconds",
            "When the process started, in seconds of the Unix epoch",
            Value::Real(booted + started / ticks),
        ),
        Family::one(
            "process_resident_memory_bytes",
            "Memory of the process that is in use",
            Value::Real(resident * page),
        ),
        Family::one(
            "process_virtual_memory_bytes",
            "Address space of the process",
            Value::Real(address_space),
        ),
    ])
}

fn files() -> Option<Vec<Family>> {
    let open = fs::read_dir("/proc/self/fd").ok()?.count();
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let most = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))
        .and_then(|limit| limit.split_whitespace().next()?.parse().ok());
    let open = Family::one(
        "process_open_fds",
        "Files and sockets that the process has open",
        Value::Level(i64::try_from(open).ok()?),
    );
    let most = most.map(|most| {
        Family::one(
            "process_max_fds",
            "Files and sockets that the process may have open",
            Value::Level(most),
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
        let values: Vec<&Value> = families.iter().map(|f| &f.series[0].value).collect();
        assert_eq!(
            values,
            [
                &Value::Sum(4.0),
                &Value::Real(1_700_000_010.0),
                &Value::Real(12_288.0),
                &Value::Real(4096.0)
            ]
        );
    }

    #[test]
    fn what_cannot_be_read_is_left_out() {
        assert_eq!(read_usage("", "", 100.0, 4096.0), None);
    }
}
