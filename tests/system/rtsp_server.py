"""A stream on the loopback interface, by GStreamer's RTSP server: run by the system's Python, which has it.

Arguments: a port, and optionally a video file, which is played again and again; else a moving test picture.
"""

import sys

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402  # only after the versions are named

ENCODED = "videoconvert ! video/x-raw,format=I420 ! jpegenc ! rtpjpegpay name=pay0 pt=26"
PICTURE = "videotestsrc is-live=true pattern=ball ! video/x-raw,width=320,height=240,framerate=25/1"


def main() -> None:
    """Serve until killed."""
    Gst.init(None)
    if "--check" in sys.argv:
        missing = [name for name in ("jpegenc", "rtpjpegpay") if Gst.ElementFactory.find(name) is None]
        sys.exit(f"GStreamer lacks {missing[0]}" if missing else 0)
    source = PICTURE
    if len(sys.argv) > 2:
        source = f"multifilesrc location={sys.argv[2]} loop=true ! decodebin ! videoconvert"
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(sys.argv[1])
    factory = GstRtspServer.RTSPMediaFactory()
    factory.set_launch(f"( {source} ! {ENCODED} )")
    factory.set_shared(True)
    server.get_mount_points().add_factory("/front", factory)
    server.attach(None)
    print("ready", flush=True)
    GLib.MainLoop().run()


if __name__ == "__main__":
    main()
