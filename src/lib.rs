//! visit-pacer
pub mod cli;
pub mod demo;
pub mod domain;
pub mod observe;
pub mod postgres;
pub mod realtime;
pub mod runtime;
pub mod settings;
pub mod web;
