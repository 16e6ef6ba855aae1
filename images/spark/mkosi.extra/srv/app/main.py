"""Starts a Spark driver, counts words with it, and answers over HTTP."""

import http.server
import json
import os

os.environ.setdefault("SPARK_CONF_DIR", "/etc/spark")
os.environ.setdefault("SPARK_LOCAL_DIRS", "/tmp")

from pyspark.sql import SparkSession  # noqa: E402  # it reads the environment

session = SparkSession.builder.getOrCreate()
COUNT = session.range(1000).selectExpr("sum(id)").first()[0]


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        body = json.dumps({"sum": COUNT}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


http.server.ThreadingHTTPServer(("", 8080), Handler).serve_forever()
