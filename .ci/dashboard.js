// Does what a person does with the dashboard: sends a request, sees it end, looks into it, narrows the list.
const assert = require("node:assert");
const { chromium } = require("playwright-core");

const FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"];

(async () => {
  const browser = await chromium.launch({ executablePath: "/usr/bin/chromium", args: FLAGS });
  const page = await browser.newPage();
  const errors = [];
  page.on("pageerror", (error) => errors.push(error.message));
  page.on("console", (message) => message.type() === "error" && errors.push(message.text()));
  await page.goto("http://127.0.0.1:8080/");
  await page.getByText("live", { exact: true }).waitFor();

  // What callers write is shown as text, whatever it is.
  const body = '{"greeting": "<img src=x onerror=document.title=1>"}';
  await page.getByLabel("Kind").selectOption("echo");
  await page.getByLabel("Request, as JSON").fill(body);
  const accepted = page.waitForResponse((response) => response.status() === 202);
  await page.getByRole("button", { name: "Send" }).click();
  const { id } = await (await accepted).json();
  const row = page.locator(`#operations tr[data-id="${id}"]`);
  await row.getByText("Succeeded").waitFor();
  await row.click();
  await page.locator("dialog[open] #result").getByText(body).waitFor();
  assert.deepEqual(await page.locator("#log li").evaluateAll((all) => all.map((one) => one.textContent.match(/[a-z]+ /)[0])), ["created ", "succeeded "]);
  await page.getByRole("button", { name: "Close" }).click();

  // What is refused says why, and one that fails is told apart.
  await page.getByLabel("Kind").selectOption("order.place");
  await page.getByRole("button", { name: "Send" }).click();
  await page.locator("#refused", { hasText: "customer" }).waitFor();
  await page.getByLabel("Only this status").selectOption("Failed");
  await page.waitForFunction(() => {
    const shown = [...document.querySelectorAll("#operations td:nth-child(3)")].map((cell) => cell.textContent);
    return shown.length && shown.every((status) => status === "Failed");
  });
  assert.equal(await page.title(), "Operations");
  // The browser itself reports the request that was refused.
  assert.deepEqual(errors.filter((error) => !error.includes("422")), []);
  await browser.close();
  console.log("dashboard: works");
})().catch((error) => {
  console.error(error);
  process.exit(1);
});
