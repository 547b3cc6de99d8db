// A module script in a headless browser, served from loopback with the files it asks for.

import { spawn } from "node:child_process";
import { mkdtempSync, readFileSync, statSync } from "node:fs";
import { rm } from "node:fs/promises";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { extname, join, normalize } from "node:path";

const KINDS = { ".html": "text/html", ".mjs": "text/javascript", ".js": "text/javascript", ".wasm": "application/wasm" };

// Runs the body of an async function, with what is given as `given`; its result. `folders` are served by name, and
// bare imports are resolved to `modules`.
export function runInBrowser(browser, { folders, modules = {}, given, script }) {
  const page = `<!doctype html><script type="importmap">${JSON.stringify({ imports: modules })}</script>
<script type="module">
const run = async () => {
  const given = await (await fetch("/given")).json();
  ${script}
};
const report = (name, value) => fetch(name, { method: "POST", body: JSON.stringify(value) });
run().then((result) => report("/result", result), (error) => report("/error", String(error)));
</script>`;
  const texts = { "/": page, "/given": JSON.stringify(given) };
  return new Promise((resolve, reject) => {
    const server = createServer(async (request, response) => {
      const { pathname } = new URL(request.url, "http://localhost");
      if (request.method === "POST") {
        let body = "";
        for await (const chunk of request) body += chunk;
        response.end();
        settle = () => (pathname === "/result" ? resolve : reject)(JSON.parse(body));
        return process.kill(-child.pid, "SIGKILL"); // and its own processes, which write to the profile
      }
      const [, name, ...rest] = normalize(pathname).split("/");
      const file = join(folders[name] ?? "", ...rest);
      if (!(pathname in texts) && !(name in folders && statSync(file, { throwIfNoEntry: false })?.isFile())) {
        return response.writeHead(404).end();
      }
      response.setHeader("Content-Type", KINDS[pathname === "/" ? ".html" : extname(file)] ?? "application/octet-stream");
      return response.end(texts[pathname] ?? readFileSync(file));
    });
    const profile = mkdtempSync(join(tmpdir(), "browser-"));
    let child;
    let settle = () => reject(new Error("The browser ended without a result."));
    server.listen(0, "127.0.0.1", () => {
      const options = ["--headless", "--no-sandbox", "--disable-gpu", `--user-data-dir=${profile}`];
      child = spawn(browser, [...options, `http://127.0.0.1:${server.address().port}/`], {
        stdio: "ignore",
        detached: true, // a process group of its own
      });
      child.once("error", reject);
      child.once("exit", async () => {
        await rm(profile, { recursive: true, force: true, maxRetries: 10, retryDelay: 100 });
        server.close();
        server.closeAllConnections();
        settle();
      });
    });
  });
}
