//! The page's files, in the binary: nothing is read from a disk, and nothing comes from elsewhere.

use axum::extract::Path;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

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

const INDEX: Asset = asset!("index.html", "text/html; charset=utf-8");
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

/// `/`
pub async fn index() -> Response {
    served(&INDEX)
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
