//! The dashboard's files, compiled into the binary: the page loads nothing from a disk or another server.

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

/// uPlot (`uplot.*`) is the file of its npm package, with its licence.
const ASSETS: &[Asset] = &[
    asset!("app.js"),
    asset!("api.js"),
    asset!("charts.js"),
    asset!("detail.js"),
    asset!("dom.js"),
    asset!("format.js"),
    asset!("overview.js"),
    asset!("table.js"),
    asset!("theme.js"),
    asset!("login.js"),
    asset!("uplot.js"),
    asset!("uplot.css", "text/css; charset=utf-8"),
    asset!("style.css", "text/css; charset=utf-8"),
    asset!("icon.svg", "image/svg+xml"),
    asset!("UPLOT-LICENSE", "text/plain; charset=utf-8"),
];

/// The attribute of elements that make sense only after a login.
const UNLESS_TOKEN: &str = " hidden data-unless-token";

/// `/`
pub async fn index(State(access): State<Arc<Access>>) -> Response {
    let page = if access.token.is_some() {
        INDEX.replace(UNLESS_TOKEN, "")
    } else {
        INDEX.to_owned()
    };
    // The next version of the program has another page at the same address.
    ([(header::CACHE_CONTROL, "no-cache")], Html(page)).into_response()
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
            // The next version of the program has other files under the same names.
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
    fn the_page_has_one_place_to_fill_in() {
        assert_eq!(INDEX.matches(UNLESS_TOKEN).count(), 1);
    }
}
