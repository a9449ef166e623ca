//! The deployment kit of `deploy/`: each file held to the tool that will read it, the files to each other, and the program to
//! what the files rely on.
//!
//! The tools come from `PyPI` (`deploy/requirements.txt` beside this file) into an environment of their own, the first time;
//! `systemd-analyze` is Debian's.

mod health;
mod kit;
mod settings;
mod systemd;
