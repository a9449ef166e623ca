//! A message of the Realtime socket: what is read as a frame is written, and reads back as it was.

use visit_pacer::realtime::frame::Frame;

/// As text and as a binary message.
pub fn run(data: &[u8]) {
    if let Ok(text) = str::from_utf8(data)
        && let Ok(frame) = Frame::decode_text(text)
    {
        let again = Frame::decode_text(&frame.encode()).expect("what is written can be read");
        assert_eq!(again, frame);
    }
    if let Ok(frame) = Frame::decode_binary(data) {
        assert_eq!(frame.event, "broadcast");
        // Its payload lies two levels deeper in the text, and may be too deep to be read there.
        if let Ok(again) = Frame::decode_text(&frame.encode()) {
            assert_eq!(again, frame);
        }
    }
}
