"""Receives webhooks and prints each once: python receiver.py PORT whsec_…  (needs: pip install standardwebhooks)"""

import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from standardwebhooks import Webhook, WebhookVerificationError

webhook = Webhook(sys.argv[2])
seen = set()  # In earnest a table, written in the transaction of what a webhook leads to.


class Receiver(BaseHTTPRequestHandler):
    timeout = 15

    def do_POST(self):
        body = self.rfile.read(min(int(self.headers["Content-Length"]), 100_000))
        try:
            event = webhook.verify(body, dict(self.headers))
        except WebhookVerificationError as error:
            return self.answer(401, str(error))
        if self.headers["webhook-id"] not in seen:
            seen.add(self.headers["webhook-id"])
            operation = event["data"]
            print(event["type"], operation["id"], operation.get("result", operation.get("error")), flush=True)
        self.answer(204)

    def answer(self, status, why=None):
        self.send_response(status, why)
        self.end_headers()


ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Receiver).serve_forever()
