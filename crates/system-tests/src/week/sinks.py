"""A mail server and a receiver of webhooks on the host's own address, which keep all that they are told, each as one line.

While /run/lp-sinks-refuse is there they refuse everything, and keep what was refused apart."""
import json, os, socketserver, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEPT = "/var/lib/lp-sinks"
LOCK = threading.Lock()


def refuses():
    return os.path.exists("/run/lp-sinks-refuse")


def keep(kind, what):
    line = json.dumps({"at": time.time(), "what": what}) + "\n"
    with LOCK, open(f"{KEPT}/{kind}", "a") as kept:
        kept.write(line)
        kept.flush()
        os.fsync(kept.fileno())


class Mail(socketserver.StreamRequestHandler):
    def say(self, text):
        self.wfile.write(text.encode() + b"\r\n")

    def handle(self):
        self.say("220 sink")
        while line := self.rfile.readline():
            verb = line.decode().strip().upper()
            if verb.startswith("EHLO"):
                self.say("250 sink")
            elif verb.startswith("MAIL") and refuses():
                keep("refused", "mail")
                self.say("451 4.3.0 not now")
            elif verb == "DATA":
                self.say("354 go on")
                text = b""
                while (part := self.rfile.readline()) not in (b".\r\n", b""):
                    text += part
                keep("mail", text.decode())
                self.say("250 taken")
            elif verb == "QUIT":
                self.say("221 bye")
                return
            else:
                self.say("250 yes")


class Hook(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        is_refused = refuses()
        keep("refused" if is_refused else "hook", body)
        self.send_response(503 if is_refused else 204)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


os.makedirs(KEPT, exist_ok=True)
threading.Thread(target=Server(("127.0.0.1", 25), Mail).serve_forever, daemon=True).start()
ThreadingHTTPServer(("127.0.0.1", 8025), Hook).serve_forever()
