//! The environment variables of OpenTelemetry, as its specification has them ("Environment Variable Specification", "OTLP
//! Exporter"): which of them count, and what is said of those that do not.
//!
//! Invariant: as the specification wants it, what cannot be read is told and ignored, and the agent starts. Nothing that is told
//! repeats an address, a header or an attribute.

use std::collections::BTreeMap;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use url::Url;

use super::Export;
use crate::domain::secret::Secret;

/// Bounds of the interval and of the time for one push, in milliseconds, and what they are by default.
const INTERVAL: Milliseconds = Milliseconds {
    least: 1_000,
    usual: 60_000,
    most: 86_400_000,
};
const TIMEOUT: Milliseconds = Milliseconds {
    least: 1,
    usual: 10_000,
    most: 60_000,
};

/// What is not spoken here, by the last part of its name: the value that is, where there is one, and what happens.
const UNSPOKEN: [(&str, &str, &str); 6] = [
    (
        "PROTOCOL",
        "http/json",
        "metrics are pushed as http/json; a Collector takes it on the port of http/protobuf, usually 4318",
    ),
    ("COMPRESSION", "none", "metrics are pushed as they are"),
    (
        "TEMPORALITY_PREFERENCE",
        "cumulative",
        "metrics are cumulative",
    ),
    ("CERTIFICATE", "", "this host's roots of trust count"),
    (
        "CLIENT_CERTIFICATE",
        "",
        "no certificate of a client is shown",
    ),
    ("CLIENT_KEY", "", "no certificate of a client is shown"),
];

struct Milliseconds {
    least: u64,
    usual: u64,
    most: u64,
}

/// A variable's name, and what it says.
type Said = (String, Secret);

struct Variables<F> {
    get: F,
    told: Vec<String>,
}

impl Export {
    /// What the variables ask for, and what is to be told of them. Without an endpoint, or where they switch it off: `None`.
    pub fn of<E>(
        variable: impl Fn(&str) -> Result<Option<Secret>, E>,
    ) -> Result<(Option<Self>, Vec<String>), E> {
        let mut variables = Variables {
            get: variable,
            told: Vec::new(),
        };
        let export = variables.export()?;
        Ok((export, variables.told))
    }
}

impl<E, F: Fn(&str) -> Result<Option<Secret>, E>> Variables<F> {
    fn export(&mut self) -> Result<Option<Export>, E> {
        if self.is_off()? {
            return Ok(None);
        }
        let Some(url) = self.endpoint()? else {
            return Ok(None);
        };
        self.tell_unspoken()?;
        let timeout = self.exporter("TIMEOUT")?;
        let interval = self.plain("OTEL_METRIC_EXPORT_INTERVAL")?;
        Ok(Some(Export {
            url,
            headers: self.headers()?,
            timeout: self.time(timeout, &TIMEOUT),
            every: self.time(interval, &INTERVAL),
            resource: self.resource()?,
        }))
    }

    fn plain(&self, name: &str) -> Result<Option<Said>, E> {
        Ok((self.get)(name)?.map(|value| (name.to_owned(), value)))
    }

    /// An option of the exporter: that of metrics goes before that of all signals.
    fn exporter(&self, option: &str) -> Result<Option<Said>, E> {
        let own = self.plain(&format!("OTEL_EXPORTER_OTLP_METRICS_{option}"))?;
        own.map_or_else(
            || self.plain(&format!("OTEL_EXPORTER_OTLP_{option}")),
            |said| Ok(Some(said)),
        )
    }

    fn is_off(&self) -> Result<bool, E> {
        let disabled = self.plain("OTEL_SDK_DISABLED")?;
        let exporters = self.plain("OTEL_METRICS_EXPORTER")?;
        let disabled = disabled.is_some_and(|(_, text)| text.expose().eq_ignore_ascii_case("true"));
        let elsewhere = exporters.is_some_and(|(_, text)| {
            let mut names = text.expose().split(',').map(str::trim);
            !names.any(|name| name == "otlp")
        });
        Ok(disabled || elsewhere)
    }

    /// That of metrics as it is, that of all signals with the path of metrics after it.
    fn endpoint(&mut self) -> Result<Option<Url>, E> {
        let Some((name, text)) = self.exporter("ENDPOINT")? else {
            return Ok(None);
        };
        let url = Url::parse(text.expose()).ok();
        let url = url.filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
        let Some(mut url) = url else {
            self.told.push(format!(
                "{name} is no URL such as http://127.0.0.1:4318; no metrics are pushed"
            ));
            return Ok(None);
        };
        url.set_fragment(None);
        if !name.contains("METRICS")
            && let Ok(mut path) = url.path_segments_mut()
        {
            path.pop_if_empty().extend(["v1", "metrics"]);
        }
        Ok(Some(url))
    }

    fn tell_unspoken(&mut self) -> Result<(), E> {
        for (option, spoken, instead) in UNSPOKEN {
            let said = self.exporter(option)?;
            let other = said.filter(|(_, text)| !text.expose().eq_ignore_ascii_case(spoken));
            if let Some((name, _)) = other {
                self.told
                    .push(format!("{name} asks for what is not there: {instead}"));
            }
        }
        Ok(())
    }

    fn headers(&mut self) -> Result<HeaderMap, E> {
        let Some((name, text)) = self.exporter("HEADERS")? else {
            return Ok(HeaderMap::new());
        };
        let headers = pairs(text.expose()).and_then(|pairs| {
            let headers = pairs.into_iter().map(|(name, value)| {
                let mut value = HeaderValue::from_str(&value).ok()?;
                value.set_sensitive(true);
                Some((HeaderName::from_bytes(name.as_bytes()).ok()?, value))
            });
            headers.collect::<Option<HeaderMap>>()
        });
        if headers.is_none() {
            self.told.push(format!(
                "{name} is no list such as name=value,name=value, with %XX for what a header cannot hold; none of it is sent"
            ));
        }
        Ok(headers.unwrap_or_default())
    }

    fn resource(&mut self) -> Result<BTreeMap<String, String>, E> {
        let mut resource = BTreeMap::from(
            [
                ("service.name", env!("CARGO_PKG_NAME")),
                ("service.version", env!("CARGO_PKG_VERSION")),
            ]
            .map(|(name, value)| (name.to_owned(), value.to_owned())),
        );
        if let Some((name, text)) = self.plain("OTEL_RESOURCE_ATTRIBUTES")? {
            match pairs(text.expose()) {
                Some(pairs) => resource.extend(pairs),
                None => self.told.push(format!(
                    "{name} is no list such as name=value,name=value; none of it is told of this agent"
                )),
            }
        }
        if let Some((_, text)) = self.plain("OTEL_SERVICE_NAME")? {
            resource.insert("service.name".to_owned(), text.expose().to_owned());
        }
        Ok(resource)
    }

    fn time(&mut self, said: Option<Said>, bounds: &Milliseconds) -> Duration {
        let Milliseconds { least, usual, most } = *bounds;
        let Some((name, text)) = said else {
            return Duration::from_millis(usual);
        };
        let time = text.expose().parse().ok();
        let time = time.filter(|time| (least..=most).contains(time));
        if time.is_none() {
            self.told.push(format!(
                "{name} is not a number of milliseconds from {least} to {most}; {usual} counts"
            ));
        }
        Duration::from_millis(time.unwrap_or(usual))
    }
}

/// A list as W3C Baggage writes it: names and values, decoded. `None` where a part of it is no pair.
fn pairs(text: &str) -> Option<Vec<(String, String)>> {
    let decoded = |text: &str| {
        let text = percent_decode_str(text.trim()).decode_utf8().ok()?;
        Some(text.into_owned())
    };
    text.split(',')
        .filter(|part| !part.trim().is_empty())
        .map(|part| {
            let (name, value) = part.split_once('=')?;
            let name = decoded(name).filter(|name| !name.is_empty())?;
            Some((name, decoded(value)?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    fn read(set: &[(&str, &str)]) -> (Option<Export>, Vec<String>) {
        let variable = |name: &str| -> Result<_, Infallible> {
            let found = set.iter().find(|(set, _)| *set == name);
            Ok(found.map(|(_, value)| Secret::new(*value)))
        };
        Export::of(variable).unwrap()
    }

    fn export(set: &[(&str, &str)]) -> Export {
        let (export, told) = read(set);
        assert_eq!(told, Vec::<String>::new());
        export.expect("an endpoint")
    }

    const ALL: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
    const OWN: &str = "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT";

    #[test]
    fn without_an_endpoint_or_switched_off_nothing_is_pushed() {
        let off = [
            vec![],
            vec![(ALL, "http://c"), ("OTEL_SDK_DISABLED", "True")],
            vec![(ALL, "http://c"), ("OTEL_METRICS_EXPORTER", "none")],
        ];
        for set in off {
            let (export, told) = read(&set);
            assert!(export.is_none() && told.is_empty(), "{set:?}: {told:?}");
        }
        export(&[
            (ALL, "http://c"),
            ("OTEL_METRICS_EXPORTER", "console, otlp"),
        ]);
    }

    #[test]
    fn the_endpoint_of_all_signals_is_given_the_path_of_metrics_and_their_own_is_taken_as_it_is() {
        for (set, expected) in [
            (vec![(ALL, "http://c:4318")], "http://c:4318/v1/metrics"),
            (vec![(ALL, "https://c/otlp/")], "https://c/otlp/v1/metrics"),
            (vec![(OWN, "http://c")], "http://c/"),
            (
                vec![(ALL, "http://a"), (OWN, "http://b/push?k=v")],
                "http://b/push?k=v",
            ),
        ] {
            assert_eq!(export(&set).url.as_str(), expected);
        }
        let (none, told) = read(&[(ALL, "collector:4317")]);
        assert!(none.is_none());
        assert!(
            told.concat()
                .contains("OTEL_EXPORTER_OTLP_ENDPOINT is no URL"),
            "{told:?}"
        );
    }

    #[test]
    fn what_is_not_set_is_as_the_specification_has_it() {
        let export = export(&[(ALL, "http://c")]);
        assert_eq!(export.timeout, Duration::from_secs(10));
        assert_eq!(export.every, Duration::from_secs(60));
        assert!(export.headers.is_empty());
        assert_eq!(export.resource["service.name"], "visit-pacer");
    }

    #[test]
    fn headers_are_decoded_and_kept_out_of_sight_and_those_of_metrics_go_first() {
        let set = [
            (ALL, "http://c"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "not=sent"),
            (
                "OTEL_EXPORTER_OTLP_METRICS_HEADERS",
                "Authorization=Basic%20aHVudGVyMg==, x-scope = a%2Cb ,",
            ),
        ];
        let headers = export(&set).headers;
        assert_eq!(headers.len(), 2);
        assert_eq!(headers["authorization"], "Basic aHVudGVyMg==");
        assert_eq!(headers["x-scope"], "a,b");
        assert!(!format!("{headers:?}").contains("aHVudGVyMg"));
    }

    #[test]
    fn a_resource_is_named_by_the_environment_and_the_name_of_the_service_goes_first() {
        let attributes = (
            "OTEL_RESOURCE_ATTRIBUTES",
            "service.name=a,deployment.environment.name=the%20test,service.instance.id=7",
        );
        let resource = export(&[(ALL, "http://c"), attributes]).resource;
        assert_eq!(resource["service.name"], "a");
        assert_eq!(resource["deployment.environment.name"], "the test");
        assert_eq!(resource["service.instance.id"], "7");
        let named = ("OTEL_SERVICE_NAME", "b");
        let resource = export(&[(ALL, "http://c"), attributes, named]).resource;
        assert_eq!(resource["service.name"], "b");
    }

    #[test]
    fn what_cannot_be_read_or_is_not_spoken_is_told_once_without_its_value_and_ignored() {
        let odd = [
            ("OTEL_EXPORTER_OTLP_HEADERS", "hunter2"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "0"),
            ("OTEL_METRIC_EXPORT_INTERVAL", "hunter2"),
            ("OTEL_RESOURCE_ATTRIBUTES", "a=%ff"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
            ("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "delta"),
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/ca.pem"),
        ];
        for said in odd {
            let (export, told) = read(&[(ALL, "http://c"), said]);
            let export = export.expect("an endpoint");
            assert_eq!(told.len(), 1, "{told:?}");
            assert!(
                told[0].starts_with(said.0) && !told[0].contains("hunter2"),
                "{told:?}"
            );
            assert!(export.headers.is_empty());
            assert_eq!(export.timeout, Duration::from_secs(10));
            assert_eq!(export.every, Duration::from_secs(60));
            assert!(!export.resource.contains_key("a"));
        }
        let spoken = ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json");
        let plain = ("OTEL_EXPORTER_OTLP_COMPRESSION", "none");
        export(&[(ALL, "http://c"), spoken, plain]);
    }
}
