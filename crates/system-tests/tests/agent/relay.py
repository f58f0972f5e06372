"""A mail relay: STARTTLS, then a user and a password, then mail. ADDRESS PORT CERTIFICATE KEY USER PASSWORD.

Prints "ready", and one JSON line for each mail that it takes."""
import base64, json, socketserver, ssl, sys

address, port, certificate, key, user, password = sys.argv[1:]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(certificate, key)


class Conversation(socketserver.BaseRequestHandler):
    def say(self, line):
        self.request.sendall(line.encode() + b"\r\n")

    def handle(self):
        secure = known = False
        sender, recipients = None, []
        self.stream = self.request.makefile("rb")
        self.say("220 relay ESMTP")
        while line := self.stream.readline(4096):
            line = line.decode("utf-8", "replace").rstrip("\r\n")
            word = line.upper()
            if word.startswith("EHLO"):
                self.say("250-relay")
                self.say("250 AUTH PLAIN" if secure else "250 STARTTLS")
            elif word == "STARTTLS" and not secure:
                self.say("220 go on")
                try:
                    self.request = context.wrap_socket(self.request, server_side=True)
                except (ssl.SSLError, OSError):
                    return
                self.stream, secure = self.request.makefile("rb"), True
            elif word.startswith("AUTH PLAIN") and secure:
                given = line.split(" ")[2:]
                if not given:
                    self.say("334 ")
                    given = [self.stream.readline(4096).decode().strip()]
                known = base64.b64decode(given[0]).decode().split("\0")[1:] == [user, password]
                self.say("235 2.7.0 welcome" if known else "535 5.7.8 wrong user or password")
            elif word.startswith("MAIL FROM:"):
                sender = line[10:]
                self.say("250 ok" if known else "530 5.7.0 who are you?")
            elif word.startswith("RCPT TO:") and known:
                recipients.append(line[8:].strip("<>"))
                self.say("250 ok")
            elif word == "DATA" and recipients:
                self.say("354 go on")
                text = []
                while (part := self.stream.readline(4096)) not in (b".\r\n", b""):
                    text.append(part.decode("utf-8", "replace"))
                mail = {"from": sender, "to": recipients, "secure": secure, "text": "".join(text)}
                print(json.dumps(mail), flush=True)
                self.say("250 taken")
            elif word == "QUIT":
                self.say("221 bye")
                return
            else:
                self.say("503 not now")


class Relay(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True

    def handle_error(self, request, client_address):
        """A client that does not believe the certificate just goes."""


with Relay((address, int(port)), Conversation) as relay:
    print("ready", flush=True)
    relay.serve_forever()
