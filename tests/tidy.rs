//! The rules that the source keeps: sizes, module docs, layers, the map.
//!
//! Reads the files as text. The parsing is rough, and enough for code that rustfmt has formatted.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

const SRC_LINES_MAX: usize = 700;
const TEST_LINES_MAX: usize = 800;
const MAP: &str = "deploy/ARCHITECTURE.md";

/// The folder of the repository.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The files below a folder with one of these extensions, in order, as paths relative to the root.
pub fn files(folder: &str, extensions: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            let hidden = path.file_name().is_some_and(|name| {
                let name = name.to_string_lossy();
                name.starts_with('.') || name == "node_modules" || name == "target"
            });
            let extension = path.extension().and_then(|extension| extension.to_str());
            if path.is_dir() && !hidden {
                folders.push(path);
            } else if extension.is_some_and(|extension| extensions.contains(&extension)) {
                let relative = path.strip_prefix(root()).expect("below the root");
                found.push(relative.to_owned());
            }
        }
    }
    found.sort();
    found
}

/// The text of one of its files.
pub fn text(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    std::fs::read_to_string(root().join(path))
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn is_of_word(letter: char) -> bool {
    letter.is_alphanumeric() || letter == '_'
}

fn none(violations: &[String]) {
    assert!(violations.is_empty(), "\n{}", violations.join("\n"));
}

#[test]
fn no_file_is_long() {
    let mut long = Vec::new();
    for (folder, most) in [("src", SRC_LINES_MAX), ("tests", TEST_LINES_MAX)] {
        for path in files(folder, &["rs"]) {
            let of_tests = path
                .iter()
                .any(|part| part == "tests" || part == "tests.rs");
            let most = if of_tests { TEST_LINES_MAX } else { most };
            let lines = text(&path).lines().count();
            if lines > most {
                long.push(format!("{}: {lines} lines of {most}", path.display()));
            }
        }
    }
    none(&long);
}

#[test]
fn every_module_says_what_it_is_for() {
    let silent = files("src", &["rs"]);
    let silent = silent
        .iter()
        .filter(|path| !path.ends_with("tests.rs") && !text(path).starts_with("//! "));
    none(
        &silent
            .map(|path| path.display().to_string())
            .collect::<Vec<_>>(),
    );
}

#[test]
fn the_map_names_every_folder_and_migration_and_nothing_that_is_not_there() {
    let map = text(MAP);
    let mut wrong = Vec::new();
    let mut folders = BTreeSet::new();
    for path in files("src", &["rs", "js"]) {
        let unit_tests = path.ends_with("tests.rs") || path.iter().any(|part| part == "tests");
        if let Some(folder) = path.parent().filter(|_| !unit_tests) {
            folders.insert(format!("`{}/`", folder.display()));
        }
    }
    folders.remove("`src/`");
    for folder in folders {
        if !map.contains(&folder) {
            wrong.push(format!("not in the map: {folder}"));
        }
    }
    for path in files("migrations", &["sql"]) {
        let name = path.file_name().expect("a file").to_string_lossy();
        if !map.contains(&format!("`{name}`")) {
            wrong.push(format!("not in the map: {name}"));
        }
    }
    for named in map.split('`').skip(1).step_by(2) {
        let ours = ["src/", "tests/", "migrations/", "deploy/"];
        let is_path = ours.iter().any(|folder| named.starts_with(folder));
        let is_prefix = named.starts_with("migrations/2") && !named.contains(".sql");
        let is_whole = is_path && !is_prefix && !named.contains(['…', '*', ' ']);
        if is_whole && !root().join(named).exists() {
            wrong.push(format!("there is no {named}"));
        }
    }
    none(&wrong);
}

/// The text without comments and literals.
fn code(text: &str) -> String {
    let mut code = String::new();
    for line in text.lines() {
        let line = line.split("//").next().unwrap_or_default();
        for (index, part) in line.split('"').enumerate() {
            if index % 2 == 0 {
                code.push_str(part);
            }
        }
        code.push('\n');
    }
    code
}

/// The paths that begin with `crate::`, with groups such as `crate::a::{b, c::d}` written out.
fn crate_paths(code: &str) -> Vec<String> {
    let mut paths = Vec::new();
    for (at, root) in code.match_indices("crate::") {
        let rest = code.get(at + root.len()..).unwrap_or_default();
        expand("", rest, &mut paths);
    }
    paths
}

/// Writes out the path that `rest` begins with; gives what follows it.
fn expand<'a>(before: &str, rest: &'a str, paths: &mut Vec<String>) -> &'a str {
    let end = rest
        .find(|letter| !is_of_word(letter) && letter != ':')
        .unwrap_or(rest.len());
    let (head, mut rest) = rest.split_at(end);
    let path = format!("{before}{head}");
    if !(head.ends_with("::") || head.is_empty()) || !rest.starts_with('{') {
        paths.push(path);
        return rest;
    }
    rest = rest.trim_start_matches('{');
    loop {
        rest = rest.trim_start_matches([',', ' ', '\n']);
        if let Some(after) = rest.strip_prefix('}') {
            return after;
        }
        let after = expand(&path, rest, paths);
        if after.len() == rest.len() {
            return after;
        }
        rest = after;
    }
}

/// Each module of the program by its path (`realtime::session`), with the modules that it names. Unit tests are left out.
fn imports() -> BTreeMap<String, BTreeSet<String>> {
    let mut texts = BTreeMap::new();
    for path in files("src", &["rs"]) {
        let unit_tests = path
            .iter()
            .any(|part| part == "tests" || part == "tests.rs");
        let module = path.with_extension("");
        let parts: Vec<_> = module
            .iter()
            .skip(1)
            .map(|part| part.to_string_lossy())
            .collect();
        if !unit_tests && path != Path::new("src/lib.rs") {
            let text = text(&path);
            let code = code(
                text.split("#[cfg(test)]\nmod tests")
                    .next()
                    .unwrap_or_default(),
            );
            texts.insert(parts.join("::"), code);
        }
    }
    let mut imports = BTreeMap::new();
    for (module, code) in &texts {
        let parent = module.rsplit_once("::").map_or("", |(parent, _)| parent);
        let code = code
            .replace("self::", &format!("crate::{module}::"))
            .replace("super::", &format!("crate::{parent}::"))
            .replace("visit_pacer::", "crate::")
            .replace("::::", "::");
        let mut named = BTreeSet::new();
        for path in crate_paths(&code) {
            let mut path = path.trim_end_matches(':');
            while !path.is_empty() && !texts.contains_key(path) {
                path = path.rsplit_once("::").map_or("", |(parent, _)| parent);
            }
            if !path.is_empty() && path != module {
                named.insert(path.to_owned());
            }
        }
        imports.insert(module.clone(), named);
    }
    imports
}

#[test]
fn each_layer_imports_only_those_below_it() {
    let below: BTreeMap<&str, &[&str]> = BTreeMap::from([
        ("domain", [].as_slice()),
        ("realtime", ["domain"].as_slice()),
        ("postgres", ["domain"].as_slice()),
        ("web", ["domain"].as_slice()),
        ("observe", ["domain"].as_slice()),
        (
            "runtime",
            [
                "domain", "realtime", "postgres", "web", "observe", "settings",
            ]
            .as_slice(),
        ),
    ]);
    let layer = |module: &str| module.split("::").next().unwrap_or_default().to_owned();
    let mut wrong = Vec::new();
    for (module, named) in imports() {
        let own = layer(&module);
        let Some(below) = below.get(own.as_str()) else {
            continue;
        };
        for named in named {
            let of = layer(&named);
            if of != own && !below.contains(&of.as_str()) {
                wrong.push(format!("{module} imports {named}"));
            }
        }
    }
    none(&wrong);
}
