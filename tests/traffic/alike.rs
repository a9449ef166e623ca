//! Whether a frame is the recorded one except for times and ids: the same keys, the same values. Each recorded id stands for one id,
//! and a time for a time of the same format.

use std::collections::BTreeMap;

use chrono::DateTime;
use serde_json::Value;
use uuid::Uuid;

/// The ids for the recorded ones so far.
#[derive(Default)]
pub struct Likeness {
    ids: BTreeMap<String, String>,
}

impl Likeness {
    /// # Errors
    /// The first difference, and where it is.
    pub fn compare(&mut self, recorded: &Value, found: &Value) -> Result<(), String> {
        self.at("", recorded, found)
            .map_err(|place| format!("differs at {place}: expected {recorded}, found {found}"))
    }

    fn at(&mut self, place: &str, recorded: &Value, found: &Value) -> Result<(), String> {
        let alike = match (recorded, found) {
            // The columns of a table are recorded once.
            (Value::String(text), Value::Array(_)) if text == "as before" => true,
            (Value::Object(recorded), Value::Object(found)) => {
                let keys = |object: &serde_json::Map<String, Value>| {
                    let mut keys: Vec<String> = object.keys().cloned().collect();
                    keys.sort();
                    keys
                };
                if keys(recorded) != keys(found) {
                    return Err(format!("{place} (keys)"));
                }
                for (key, value) in recorded {
                    self.at(&format!("{place}/{key}"), value, &found[key])?;
                }
                true
            }
            (Value::Array(recorded), Value::Array(found)) if recorded.len() == found.len() => {
                for (index, (recorded, found)) in recorded.iter().zip(found).enumerate() {
                    self.at(&format!("{place}/{index}"), recorded, found)?;
                }
                true
            }
            (Value::Number(_), Value::Number(_)) if place.contains("/id") => {
                self.same_id(&recorded.to_string(), &found.to_string())
            }
            (Value::String(recorded), Value::String(found)) => {
                recorded == found || self.alike_texts(recorded, found)
            }
            (recorded, found) => recorded == found,
        };
        if alike { Ok(()) } else { Err(place.to_owned()) }
    }

    fn alike_texts(&mut self, recorded: &str, found: &str) -> bool {
        let is_id = |text: &str| text.parse::<Uuid>().is_ok();
        let is_time = |text: &str| DateTime::parse_from_rfc3339(text).is_ok();
        let zone = |text: &str| text.trim_start_matches(|c| c != 'Z' && c != '+').to_owned();
        if is_id(recorded) && is_id(found) {
            return self.same_id(recorded, found);
        }
        if is_time(recorded) && is_time(found) {
            return zone(recorded) == zone(found);
        }
        let without_age = |text: &str| {
            let words = text.split(' ').filter(|word| word.parse::<u64>().is_err());
            words.collect::<Vec<_>>().join(" ")
        };
        recorded.contains("seconds ago") && without_age(recorded) == without_age(found)
    }

    fn same_id(&mut self, recorded: &str, found: &str) -> bool {
        let known = self.ids.entry(recorded.to_owned());
        known.or_insert_with(|| found.to_owned()) == found
    }
}
