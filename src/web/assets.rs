//! The page's files, in the binary: nothing is read from a disk, and nothing comes from elsewhere.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Response};

use super::guard::Access;

struct Asset {
    name: &'static str,
    content_type: &'static str,
    bytes: &'static [u8],
}

macro_rules! asset {
    ($name:literal, $content_type:literal) => {
        Asset {
            name: $name,
            content_type: $content_type,
            bytes: include_bytes!(concat!("assets/", $name)),
        }
    };
    ($name:literal) => {
        asset!($name, "text/javascript; charset=utf-8")
    };
}

const INDEX: &str = include_str!("assets/index.html");
const LOGIN: Asset = asset!("login.html", "text/html; charset=utf-8");

/// uPlot (`uplot.*`) is as npm has it, with its licence; the rest is ours.
const ASSETS: &[Asset] = &[
    asset!("app.js"),
    asset!("api.js"),
    asset!("charts.js"),
    asset!("format.js"),
    asset!("head.js"),
    asset!("row.js"),
    asset!("table.js"),
    asset!("theme.js"),
    asset!("login.js"),
    asset!("uplot.js"),
    asset!("uplot.css", "text/css; charset=utf-8"),
    asset!("style.css", "text/css; charset=utf-8"),
    asset!("icon.svg", "image/svg+xml"),
    asset!("UPLOT-LICENSE", "text/plain; charset=utf-8"),
];

/// A page that says why something is refused, at `{why}`.
const REFUSED: &str = include_str!("assets/refused.html");
/// Of what makes sense only to who has logged in.
const UNLESS_TOKEN: &str = " hidden data-unless-token";

/// `/`
pub async fn index(State(access): State<Arc<Access>>) -> Response {
    let page = if access.token.is_some() {
        INDEX.replace(UNLESS_TOKEN, "")
    } else {
        INDEX.to_owned()
    };
    // Another version of the program has another one.
    ([(header::CACHE_CONTROL, "no-cache")], Html(page)).into_response()
}

/// To people, in words of ours.
pub fn refused(status: StatusCode, why: &'static str) -> Response {
    (status, Html(REFUSED.replace("{why}", why.trim_end()))).into_response()
}

/// `/login`
pub async fn login() -> Response {
    served(&LOGIN)
}

/// `/assets/NAME`
pub async fn asset(Path(name): Path<String>) -> Response {
    match ASSETS.iter().find(|asset| asset.name == name) {
        Some(asset) => served(asset),
        None => (StatusCode::NOT_FOUND, "no such file\n").into_response(),
    }
}

fn served(asset: &Asset) -> Response {
    (
        [
            (header::CONTENT_TYPE, asset.content_type),
            // Another version of the program has other files under the same names.
            (header::CACHE_CONTROL, "no-cache"),
        ],
        asset.bytes,
    )
        .into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_have_the_places_that_are_filled_in() {
        assert_eq!(INDEX.matches(UNLESS_TOKEN).count(), 1);
        assert_eq!(REFUSED.matches("{why}").count(), 1);
    }
}
