//! Reads the files of `recordings/`: what clients and the real server sent.
//!
//! Owns the format of the files, described in `README.md` beside them. A line that is not understood fails the test.

use std::{fs, path::PathBuf, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::Value;

/// One scenario, in order of time.
pub struct Recording {
    pub name: String,
    pub lines: Vec<RecordedLine>,
}

/// One line of a recording.
pub struct RecordedLine {
    /// Since the scenario began.
    pub at: Duration,
    /// The name of the connection in the scenario; empty for notes and for a single connection.
    pub connection: String,
    pub what: Recorded,
}

/// What happened on a connection.
pub enum Recorded {
    /// The client requested a socket.
    Connect { url: String },
    /// The server opened it.
    Opened,
    /// The server answered with this status instead, or nothing answered.
    Refused { status: Option<u16>, body: String },
    /// The client sent a text message.
    Sent(String),
    /// The client sent something else.
    SentOther,
    /// The server sent a text message.
    Received(String),
    /// The server sent a binary message.
    ReceivedBinary(Vec<u8>),
    /// The client closed the socket.
    Left,
    /// The socket was closed by the server with this code, or by the network.
    Closed { code: Option<u64> },
    /// What was done to the system.
    Note(Value),
}

impl Recording {
    /// Reads the recording of this name.
    pub fn read(name: &str) -> Self {
        let path = directory().join(format!("{name}.jsonl"));
        let text = fs::read_to_string(&path).expect("the recording");
        Self {
            name: name.to_owned(),
            lines: text.lines().map(RecordedLine::read).collect(),
        }
    }

    /// The names of all recordings, in order.
    pub fn names() -> Vec<String> {
        let files = fs::read_dir(directory()).expect("the recordings");
        let mut names: Vec<String> = files
            .filter_map(|file| {
                let name = file.expect("the folder is read").file_name();
                Some(name.to_str()?.strip_suffix(".jsonl")?.to_owned())
            })
            .collect();
        names.sort();
        names
    }
}

fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/traffic/recordings")
}

impl RecordedLine {
    fn read(line: &str) -> Self {
        let line: Value = serde_json::from_str(line).expect("a line is JSON");
        let data = &line["data"];
        let text = || data.as_str().expect("the data is text").to_owned();
        let kind = (line["dir"].as_str(), line["kind"].as_str());
        let what = match (kind.0.expect("a direction"), kind.1.expect("a kind")) {
            ("send", "http") => Recorded::Connect {
                url: data["GET"].as_str().expect("a URL").to_owned(),
            },
            ("recv", "open") => Recorded::Opened,
            ("recv", "http") if data["status"] == 101 => Recorded::Opened,
            ("recv", "http") => Recorded::Refused {
                status: data["status"]
                    .as_u64()
                    .map(|status| status.try_into().expect("a status")),
                body: data["body"].as_str().unwrap_or_default().to_owned(),
            },
            ("send", "text") => Recorded::Sent(text()),
            ("send", "binary") => Recorded::SentOther,
            ("recv", "text") => Recorded::Received(text()),
            ("recv", "binary") => {
                Recorded::ReceivedBinary(STANDARD.decode(text()).expect("the data is base64"))
            }
            ("send", "close") => Recorded::Left,
            ("recv", "close") => Recorded::Closed {
                code: data["rcvd_code"].as_u64(),
            },
            ("note", "note") => Recorded::Note(data.clone()),
            other => panic!("expected a line that the README describes, found {other:?}"),
        };
        Self {
            at: Duration::from_millis(line["t"].as_u64().expect("a time")),
            connection: line["conn"].as_str().unwrap_or_default().to_owned(),
            what,
        }
    }
}
