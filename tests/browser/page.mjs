// The dashboard of a running agent in a browser. Environment: DASHBOARD (its URL), ROW (a distribution that runs), BAD (its
// time_period is invalid), LOST (its total_visits is null). With TOKEN only the login is tested, with READ_ONLY a dashboard that
// cannot edit. Each line of standard output is JSON: a query for the test to run, a request to kill the agent, or at the end
// {"done": true, "faults": […]}; answers come on standard input.
import { createInterface } from "node:readline";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { chromium } from "playwright-core";

const { DASHBOARD, ROW, BAD, LOST, TOKEN, READ_ONLY, CHROMIUM } = process.env;
const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const answers = createInterface({ input: process.stdin })[Symbol.asyncIterator]();

// The test runs the query.
async function ask(sql) {
  console.log(JSON.stringify({ ask: sql }));
  return (await answers.next()).value;
}

async function killAgent() {
  console.log(JSON.stringify({ kill: true }));
  await answers.next();
}

const faults = [];
function check(is, words) {
  if (!is) faults.push(words);
}

async function open(browser, options, path = "/") {
  const context = await browser.newContext(options);
  const page = await context.newPage();
  page.setDefaultTimeout(60000);
  page.on("console", (message) => {
    if (["error", "warning"].includes(message.type())) faults.push(`console: ${message.text()}`);
  });
  page.on("pageerror", (error) => faults.push(`error: ${error.message}`));
  await page.goto(DASHBOARD + path);
  await page.getByText("✓ ready").waitFor();
  return page;
}

async function soundFor(page, where) {
  // The page's policy allows no other script, but one that the browser itself evaluates.
  await page.evaluate(axe);
  const { violations } = await page.evaluate(() => globalThis.axe.run(document, {
    runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"],
  }));
  for (const violation of violations) {
    if (["serious", "critical"].includes(violation.impact)) {
      const nodes = violation.nodes.slice(0, 3).map((node) => node.html.slice(0, 160));
      faults.push(`${where}: ${violation.id}: ${violation.help}: ${nodes.join(" | ")}`);
    }
  }
}

// The result of an edit is visible without scrolling.
async function answered(page, words) {
  const answer = page.locator("#detail .done, #detail .problem").getByText(words);
  await answer.waitFor();
  const { y, height } = await answer.boundingBox();
  check(y >= 0 && y + height <= page.viewportSize().height, `the answer ${words} is in the window`);
}

// Presses one of the two buttons of a question.
async function answer(page, question, button) {
  await page.locator("#question").getByText(question).waitFor();
  await page.locator("#question").getByRole("button", { name: button, exact: true }).click();
  await page.locator("#question").waitFor({ state: "hidden" });
}

// The filter is in the address, and the address restores it.
async function filters(page) {
  await page.locator("#chips .chip").getByText("invalid").click();
  await page.getByLabel(/^Search/).fill("total_visits is");
  const found = page.locator("#view-distributions:not([hidden]) .grid-row.body:not([hidden])").getByText(LOST.slice(0, 8));
  await found.waitFor();
  check(page.url().endsWith("/#/?status=invalid&q=total_visits+is"), `the address is ${page.url()}`);
  const count = await page.locator("#count").textContent();
  await page.reload();
  await found.waitFor();
  check(await page.locator("#count").textContent() === count, "the address shows what was seen");
  await page.locator("#nav-health").click();
  await page.locator("#nav-distributions").click();
  await found.waitFor();
  check(await page.locator("#grid").getAttribute("aria-activedescendant") === "row-0", "the row of the cursor");
  await page.getByLabel(/^Search/).fill("nothing has this in it");
  await page.locator("#count").getByText(/^0 of/).waitFor();
  check(await page.locator("#grid").getAttribute("aria-activedescendant") === null, "no row, no cursor");
  await soundFor(page, "no match");
  await page.goto(`${DASHBOARD}/#/`);
  await page.locator("#count").getByText(/^[0-9]+$/).waitFor();
}

async function edits(browser) {
  const page = await open(browser, { viewport: { width: 1440, height: 900 } });
  const first = page.locator(".grid-row.body:not([hidden])").first();
  await first.getByText("invalid", { exact: true }).waitFor();
  await filters(page);
  await page.getByLabel(/^Search/).fill(ROW.slice(0, 8));
  await page.locator(".grid-row.body:not([hidden])").first().click();
  await page.getByRole("button", { name: "Pause", exact: true }).click();
  await answered(page, "Paused.");
  const paused = await ask(`select count(*)::text from store_visits where distribution_id = '${ROW}'`);
  check(await ask(`select is_active::text from visit_distribution where id = '${ROW}'`) === "false", "paused in the table");
  await page.locator("#detail .reason-line .word").getByText("paused").waitFor();
  await ask("select 'three seconds, in each of which the row would fire' from pg_sleep(3)");
  check(await ask(`select count(*)::text from store_visits where distribution_id = '${ROW}'`) === paused, "nothing is stored after the pause");

  await page.locator("#detail").getByText("Paused; resume it first.").waitFor();
  check(await page.getByRole("button", { name: "Store now" }).isDisabled(), "nothing can be stored for a paused row");

  await page.getByRole("textbox", { name: "Rate" }).fill("5000000");
  await page.getByRole("button", { name: "Set rate" }).click();
  const question = /^Change the rate from 20 \/ second to 5,000,000 \/ second\? The remaining [0-9,]+ visits would be stored within seconds\.$/;
  await page.locator("#question").getByText(question).waitFor();
  await soundFor(page, "a question");
  await answer(page, question, "Keep rate");
  check(await ask(`select visits_per_unit || ' ' || time_period from visit_distribution where id = '${ROW}'`) === "20 second", "a rate that was not confirmed is not set");
  await page.getByRole("textbox", { name: "Rate" }).fill("7.5");
  await page.getByRole("combobox", { name: "visits per" }).selectOption("second");
  await page.locator("#detail form").first().getByRole("button").click();
  await answered(page, "Rate: 7.5 / second");
  check(await ask(`select visits_per_unit || ' ' || time_period from visit_distribution where id = '${ROW}'`) === "7.5 second", "the rate in the table");

  await page.getByRole("button", { name: "Resume", exact: true }).click();
  await answered(page, "Resumed.");
  await page.locator("#detail .reason-line .word").getByText("active").waitFor();
  await page.locator("#detail canvas").nth(1).waitFor();
  await page.locator("#detail .log li").getByText(/resumed/).waitFor();

  await page.getByRole("spinbutton").fill("1");
  await page.getByRole("button", { name: "Store now" }).click();
  await answer(page, "Store 1 visit now? This cannot be undone.", "Store 1 visit");
  await answered(page, /^1 visit stored: /);

  await ask(`update visit_distribution set visits_per_unit = 9 where id = '${ROW}' returning 'edited'`);
  await page.locator("#detail .facts").getByText("9 / second").first().waitFor();

  // By the keyboard alone.
  await page.keyboard.press("Escape");
  await page.locator("#detail").waitFor({ state: "hidden" });
  await page.keyboard.press("/");
  await page.keyboard.press("ControlOrMeta+a");
  await page.keyboard.type(BAD.slice(0, 8));
  await page.locator("#count").getByText(/^1 of/).waitFor();
  await page.locator("#grid").focus();
  await page.keyboard.press("ArrowDown");
  await page.keyboard.press("Enter");
  await page.locator("#detail .reason-line").getByText(/as soon as the row is corrected/).waitFor();
  await repairs(page);
  await page.keyboard.press("Escape");
  await page.locator("#detail").waitFor({ state: "hidden" });

  await page.getByRole("button", { name: "Pause everything" }).click();
  await page.locator("#question").waitFor();
  await page.keyboard.press("Escape");
  await page.locator("#question").waitFor({ state: "hidden" });
  check(await ask("select paused::text from visit_pacer_control") === "false", "Escape pauses nothing");
  await page.getByRole("button", { name: "Pause everything" }).click();
  await answer(page, "Pause everything? Visits that fall due meanwhile are stored after you resume.", "Pause everything");
  await page.locator("#banner").getByText(/Everything is paused/).waitFor();
  await page.getByLabel(/^Search/).fill("");
  await page.locator(".grid-row.body:not([hidden]) .reason").getByText("Everything is paused").first().waitFor();
  check(await page.locator("#view-distributions .status.good, #chips .chip.good").count() === 0, "no row looks as if it ran");
  await soundFor(page, "everything is paused");
  await page.getByRole("button", { name: "Resume everything" }).click();
  await page.locator("#banner").waitFor({ state: "hidden" });
  await page.context().close();
}

// An invalid row can be repaired with the form, or shows the statement that does it.
async function repairs(page) {
  await page.getByRole("button", { name: "Pause", exact: true }).waitFor();
  check(await page.getByRole("combobox", { name: "visits per" }).inputValue() === "", "no unit is chosen for a row that has none");
  await page.getByRole("button", { name: "Set rate" }).click();
  check(await ask(`select time_period from visit_distribution where id = '${BAD}'`) === "fortnight", "no unit is set that was not chosen");
  await page.getByRole("combobox", { name: "visits per" }).selectOption("minute");
  await page.getByRole("button", { name: "Set rate" }).click();
  await answered(page, "Rate: 1 / minute");
  check(await ask(`select time_period from visit_distribution where id = '${BAD}'`) === "minute", "the unit in the table");
  await page.locator("#detail .reason-line .word").getByText("active").waitFor();

  await page.goto(`${DASHBOARD}/#/distributions/${LOST}`);
  await page.locator("#detail code").getByText(`update visit_distribution set total_visits = … where id = '${LOST}';`).waitFor();
}

// Only a real browser sends the origin of a form as browsers do.
async function login(browser) {
  for (const viewport of [{ width: 1280, height: 800 }, { width: 360, height: 700 }]) {
    const context = await browser.newContext({ viewport });
    const page = await context.newPage();
    page.setDefaultTimeout(60000);
    await page.goto(DASHBOARD);
    await soundFor(page, `login, ${viewport.width} pixels`);
    await page.getByLabel("Token").fill("not the token of this agent");
    await page.getByRole("button", { name: "Log in" }).click();
    await page.getByText("Wrong token.").waitFor();
    await soundFor(page, `a refused login, ${viewport.width} pixels`);
    await page.getByLabel("Token").fill(TOKEN);
    await page.keyboard.press("Enter");
    await page.getByText("✓ ready").waitFor();
    const wide = await page.evaluate(() => document.documentElement.scrollWidth > innerWidth + 1);
    check(!wide, `${viewport.width} pixels: wider than the screen`);
    await soundFor(page, `distributions, ${viewport.width} pixels`);
    await page.getByRole("button", { name: "Log out" }).click();
    await page.getByLabel("Token").waitFor();
    await page.goto(DASHBOARD);
    check(new URL(page.url()).pathname === "/login", "after the logout, the login is asked for again");
    // Another site's form, as a browser sends it.
    await page.goto("about:blank");
    await page.setContent(`<form method="post" action="${DASHBOARD}/login"><input name="token"><button>Go</button></form>`);
    await page.getByRole("button", { name: "Go" }).click();
    await page.getByText("a page of another origin may not change anything").waitFor();
    check(await page.title() === "Refused · visit-pacer", "a refusal is a page");
    await soundFor(page, "another site's form is refused");
    await context.close();
  }
}

// A page that cannot edit says so, and one without a connection shows what is unknown.
async function readOnlyThenLost(browser) {
  const pages = [];
  for (const [viewport, colorScheme] of [[{ width: 1440, height: 900 }, "light"], [{ width: 360, height: 700 }, "dark"]]) {
    const context = await browser.newContext({ viewport, colorScheme });
    const page = await context.newPage();
    page.setDefaultTimeout(60000);
    await page.goto(`${DASHBOARD}/#/distributions/${ROW}`);
    await page.locator("#detail").getByText("Editing is disabled here (read-only).").waitFor();
    check(await page.locator("#detail .edit, #pause-all").filter({ visible: true }).count() === 0, "nothing can be edited");
    await soundFor(page, `read-only, ${viewport.width} pixels`);
    pages.push(page);
  }
  await killAgent();
  for (const page of pages) {
    const { width } = page.viewportSize();
    await page.locator("#disconnected").getByText(/^No connection to the agent since [0-9:]+ \S+; showing the last known state/).waitFor();
    const banner = await page.locator("#disconnected").boundingBox();
    const panel = await page.locator("#detail").boundingBox();
    check(panel.y >= banner.y + banner.height, `${width} pixels: the panel covers the banner`);
    await soundFor(page, `disconnected, a distribution, ${width} pixels`);
    await page.keyboard.press("Escape");
    for (const tile of ["ready", "database", "realtime"]) {
      check(await page.locator(`#tile-${tile}`).textContent() === "unknown", `${tile} is not known`);
    }
    await soundFor(page, `disconnected, ${width} pixels`);
    await page.context().close();
  }
}

async function appearance(browser) {
  const desktop = { width: 1280, height: 800 };
  const phone = { width: 360, height: 700 };
  for (const colorScheme of ["light", "dark"]) {
    for (const [device, viewport] of [["desktop", desktop], ["phone", phone]]) {
      for (const [view, path, sign] of [
        ["distributions", "/", ".grid-row.body:not([hidden])"],
        ["distribution", `/#/distributions/${ROW}`, "#detail canvas"],
        ["health", "/#/health", "#realtime-events li"],
      ]) {
        const page = await open(browser, { viewport, colorScheme }, path);
        await page.locator(sign).first().waitFor();
        await soundFor(page, `${view}, ${device}, ${colorScheme}`);
        const wide = await page.evaluate(() => document.documentElement.scrollWidth > innerWidth + 1);
        check(!wide, `${view}, ${device}: wider than the screen`);
        if (view === "distributions") {
          const room = await page.locator("#grid").evaluate((grid) => grid.clientHeight / grid.querySelector(".body").offsetHeight);
          check(room > 3, `${device}: room for ${room} rows`);
        }
        await page.context().close();
      }
    }
  }
}

const browser = await chromium.launch({ executablePath: CHROMIUM, args: ["--no-sandbox", "--disable-dev-shm-usage"] });
try {
  if (TOKEN) {
    await login(browser);
  } else if (READ_ONLY) {
    await readOnlyThenLost(browser);
  } else {
    await edits(browser);
    await appearance(browser);
  }
} catch (error) {
  faults.push(String(error));
}
await browser.close();
console.log(JSON.stringify({ done: true, faults }));
process.exit(0);
