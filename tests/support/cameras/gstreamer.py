"""An RTSP server of GStreamer's, of several kinds of streams. Run by the system's Python: `gstreamer.py PORT`."""

import sys

import gi  # type: ignore[import-not-found]  # the system has it

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # type: ignore[import-not-found]  # noqa: E402  (after versions)

H264 = "x264enc tune=zerolatency speed-preset=ultrafast key-int-max=25 threads=1 {} ! rtph264pay name=pay0 pt=96"
H265 = "x265enc tune=zerolatency speed-preset=ultrafast key-int-max=25 ! rtph265pay name=pay0 pt=96 config-interval=1"
SOUND = "audiotestsrc is-live=true ! mulawenc ! rtppcmupay name=pay0 pt=0"
SOURCE = "videotestsrc is-live=true pattern=ball ! video/x-raw,width=320,height={},framerate=25/1{}"
STREAMS = {
    "/h264": f"{SOURCE.format(240, '')} ! {H264.format('')} config-interval=1",
    "/wide": f"{SOURCE.format(360, ',pixel-aspect-ratio=2/1')} ! {H264.format('')} config-interval=1",
    "/interlaced": f"{SOURCE.format(240, '')} ! interlace field-pattern=2:2 ! {H264.format('interlaced=true')}",
    "/h265": f"{SOURCE.format(240, ',format=I420_10LE')} ! {H265}",
    "/sound-first": f"{SOUND} {SOURCE.format(240, '')} ! {H264.format('').replace('pay0', 'pay1')}",
    "/jpeg": f"{SOURCE.format(240, ',format=I420')} ! jpegenc ! rtpjpegpay name=pay0 pt=26",
    "/vp8": f"{SOURCE.format(240, '')} ! vp8enc deadline=1 ! rtpvp8pay name=pay0 pt=96",
}

Gst.init(None)
server = GstRtspServer.RTSPServer()
server.set_address("127.0.0.1")
server.set_service(sys.argv[1])
for path, launch in STREAMS.items():
    factory = GstRtspServer.RTSPMediaFactory()
    factory.set_launch(f"( {launch} )")
    factory.set_shared(True)
    server.get_mount_points().add_factory(path, factory)
server.attach(None)
print("READY", flush=True)
GLib.MainLoop().run()
