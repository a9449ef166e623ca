//! What stands for [`otlp`](super::otlp) in a program that was built without it: nothing is pushed, and whoever asks for it is told so.

use std::convert::Infallible;
use std::future::Ready;

use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::Family;
use crate::domain::secret::Secret;

/// Never there.
pub struct Export(Infallible);

impl Export {
    /// None; and that there is none, where the environment asks for one.
    pub fn of<E>(
        variable: impl Fn(&str) -> Result<Option<Secret>, E>,
    ) -> Result<(Option<Self>, Vec<String>), E> {
        for name in [
            "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
            "OTEL_EXPORTER_OTLP_ENDPOINT",
        ] {
            if variable(name)?.is_some() {
                let told = format!(
                    "{name} is set, and this program was built without OTLP: no metrics are pushed, they are at /metrics alone; \
                     build it with `cargo build --release --features otlp`"
                );
                return Ok((None, vec![told]));
            }
        }
        Ok((None, Vec::new()))
    }

    /// Cannot be called.
    pub fn run<F: Fn() -> Vec<Family>>(
        self,
        _agent: Uuid,
        _readings: F,
        _shutdown: CancellationToken,
    ) -> Ready<()> {
        match self.0 {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_without_otlp_says_so_where_it_is_asked_for() {
        let set = |name: &str| -> Result<_, Infallible> {
            let is_it = name == "OTEL_EXPORTER_OTLP_ENDPOINT";
            Ok(is_it.then(|| Secret::new("http://user:hunter2@collector:4318")))
        };
        let (export, told) = Export::of(set).unwrap();
        assert!(export.is_none());
        let [told] = told.as_slice() else {
            panic!("one word is expected: {told:?}")
        };
        assert!(
            told.contains("OTEL_EXPORTER_OTLP_ENDPOINT is set"),
            "{told}"
        );
        assert!(
            told.contains("--features otlp") && !told.contains("hunter2"),
            "{told}"
        );
        let (_, told) = Export::of(|_| Ok::<_, Infallible>(None)).unwrap();
        assert!(told.is_empty(), "{told:?}");
    }
}
