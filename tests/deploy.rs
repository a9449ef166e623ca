//! The deployment kit of `deploy/`: each file held to the tool that will read it, and the program to what the files rely on.

mod systemd;
