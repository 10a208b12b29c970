"""Verifies deliveries for tests/harness/webhook_receiver.rs with the library that receivers use."""

import json
import sys

from standardwebhooks import Webhook, WebhookVerificationError

given = json.load(sys.stdin)
verified = 0
for secret in given["secrets"]:
    webhook = Webhook(secret)
    for delivery in given["deliveries"]:
        webhook.verify(delivery["body"], delivery["headers"])
        verified += 1
        try:
            webhook.verify(delivery["body"] + " ", delivery["headers"])
        except WebhookVerificationError:
            continue
        sys.exit("a body that was changed passes")
print(f"verified {verified}")
