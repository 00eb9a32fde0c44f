"""Write two samples; all companies, people and events are invented, so a score on them proves nothing about finance.

sentiment.csv and topic.csv come from a small phrase grammar and exist only so that a fresh clone can run end to end
with no network. The second imitates short finance posts, the first company releases.

Grammar: ``[a|b]`` picks one alternative (may be nested or empty); ``{slot}`` is filled from the row's own facts (its
company, ticker and amounts, so that the numbers within a row agree), or from SLOTS without repeats inside a row.
"""

import csv
import random
import re
from pathlib import Path

SEED = 20240229
SENTIMENT_ROWS = {"negative": 120, "neutral": 300, "positive": 180}
ROWS_PER_TOPIC = 40
# Word-set Jaccard at which a candidate row counts as a near-duplicate of an earlier one and is drawn again.
NEAR_DUPLICATE = 0.8
SHARED_SHARE = 0.15  # of sentiment rows: frames that every class uses, so that only the outcome tells them apart
REASON_SHARE = 0.55


def lines(block: str) -> list[str]:
    return [line.strip() for line in block.strip().splitlines()]


COMPANIES = [
    name
    for line in lines("""
        Haltrovik Brennquist Ossmarel Kelvaranta Lindervast Morvanesk
        Pellisund Quarrowby Rastenmoor Skarvhulme Tolmeriva Ulvenmark
        Vantoriel Wexlomar Ysterglade Zandrelle Arvostekk Bolvinta Cindraval
        Dovrekamm Elmsvaara Fjornatek Grastellon Hirvamora Ivalgrund
        Jostavinn Kaltimbro Lumivesta Merrowfen Nordqvale Olmetrisk Pravistola
        Rovantekk Saltmarel Turvenholm Vostravik Welkinorra Auristamm
        Brackenvoss Ekmarinda
    """)
    for name in line.split()
]
SLOTS = {
    name: [part.strip() for part in " ".join(block.split()).split(";")]
    for name, block in {
        "form": "Oyj; AB; Group; plc; SA; AG; ASA; NV; Holding; A/S",
        "day": "Monday; Tuesday; Wednesday; Thursday; Friday",
        "month": "January; February; March; April; May; June; July; August; September; October; November; December",
        "period": """the first quarter; the second quarter; the third quarter; the fourth quarter; the first half;
            January-September; the full year; the financial year ended in {month}; the three months to {month};
            the review period""",
        "city": """Tampere; Oulu; Turku; Lahti; Gothenburg; Malmo; Aarhus; Bergen; Tallinn; Riga; Vilnius; Gdansk;
            Brno; Graz; Leipzig; Bremen; Utrecht; Ghent; Lyon; Bilbao; Porto; Turin; Leeds; Cork""",
        "nationality": """Finnish; Swedish; Danish; Norwegian; Estonian; Latvian; Polish; Czech; Austrian; German;
            Dutch; Belgian; French; Spanish; Portuguese; Italian; Irish""",
        "region": """the Nordic countries; the Baltic states; central Europe; southern Europe; Germany; Poland;
            the Benelux area; the home market; North America; Asia""",
        "product": """industrial pumps; forklift trucks; paper machinery; school furniture; rye bread; lift components;
            payroll software; hospital beds; winter tyres; plywood panels; packaging film; network antennas;
            fishing tackle; frozen vegetables; timber houses; ship propellers; bus seats; hearing aids;
            welding equipment; ceramic tiles; mobile cranes; garden tools; dairy drinks; water meters; office chairs;
            train doors""",
        "unit": """machinery; packaging; consumer; electronics; forestry; logistics; services; construction; software;
            food; healthcare; printing""",
        "given": "Aile; Torvik; Maarelle; Ossian; Brida; Jelmer; Kaisu; Luvian; Henrika; Tiemo; Solvei; Radek",
        "family": """Korventaus; Maelsenby; Dravikoff; Uhrlandt; Pasquarel; Vinterlo; Oskaranta; Brellmans; Tarnovitz;
            Hjellquist; Lobrandt; Sarvelainen; Zwerkamp; Fellimore""",
        "person": "{given} {family}",
        "boss": "[chief executive|CEO|finance chief|chairman|managing director] {person}",
        "gain": """operating profit; net sales; pretax profit; order intake; net profit; turnover; EBITDA; revenue;
            cash flow from operations; gross profit; the order backlog; comparable operating profit""",
        "burden": """net debt; raw material costs; interest expenses; energy costs; credit losses; fixed costs;
            impairment charges; overdue receivables; warranty costs; logistics costs; personnel costs""",
        "loss": "operating loss; net loss; pretax loss; loss before taxes; loss for the period",
        "rose": "rose; increased; grew; climbed; went up; advanced",
        "fell": "fell; decreased; declined; dropped; went down; slipped",
        "currency": "EUR {n} mn; EUR {n} million; {n} million euros",
        # Topic sample only.
        "broker": """Ardenfell Securities; Quillmoor Partners; Tessamere Bank; Hobrechtvane; Brinmarkk Research;
            Owlsgate Capital; Lorrimund""",
        "country": "Valdoria; Estmarken; Karvenia; Lothrenia; Sundrelia; Ostravalia; Merrovia",
        "topicproduct": """smart watch; electric van; cloud platform; insulin pump; delivery app; battery pack;
            headset; payment card; robot vacuum; streaming service; plant-based burger; flight route; mattress""",
        "sector": """tech; retail; chip; bank; energy; travel; software; biotech; auto; mining; utility; media; food;
            insurance""",
        "event": """the rate decision; earnings; the jobs report; the court ruling; the election; the IPO;
            the merger vote; the dividend date; the output meeting; inflation data; the bond auction;
            the product launch; an analyst day; the budget vote; the oil report; the regulator's answer""",
        "tag": "#stocks; #investing; #markets; #trading; #business; #news; #finance; #economy; #money",
    }.items()
}

# Clauses that say nothing about the outcome; added to rows of every sentiment class.
LEADS = lines("""
    according to [a statement|its interim report|a stock exchange release] [on {day}|published in {city}],
    {boss} [said|told reporters|wrote in a letter to shareholders] that
    {city}-based {co3}, [a large owner|a partner|a customer], [said|noted] on {day} that
""")
TAILS = lines("""
    , [said|according to] {boss}
    , [according to|as shown in] a [release|report|statement] published [on {day}|in {city}]
    ; the largest product line of the company [is|remains] {product}
    , while the figures for the {unit} [unit|division|segment] [will follow|were published] in {month}
    at a time when demand for {product} is [growing|weakening|mixed]
    ; the {nationality} group employs [about|some] {count} people in {city}
    , [a month|a week] after the [profit|loss] [warning|forecast] [issued|published] in {month}
""")

# Reasons that some rows of a class give; the neutral ones reuse the words of the others.
REASONS = {
    "positive": lines("""
        , [helped|supported|lifted] by [strong demand|better prices|higher volumes|savings|a good start in {region}]
        [thanks to|owing to] [strong sales|lower costs|better margins|the recovery] in {region}
        , [a better result than expected|ahead of its own plan|the best level in {small} years]
    """),
    "negative": lines("""
        , [hurt|burdened|dragged down] by [weak demand|lower prices|lower volumes|delays|a poor start in {region}]
        [because of|owing to] [weak sales|higher costs|thinner margins|the downturn] in {region}
        , [a poorer result than expected|behind its own plan|the worst level in {small} years]
    """),
    "neutral": lines("""
        ; [strong|weak] demand in {region} [had|has] no effect on [this|the plan]
        , as [announced|expected|agreed] in {month}
        , regardless of [higher|lower|better] [costs|prices|volumes|margins] in {region}
    """),
}

# Frames that every sentiment class uses; {outcome} depends on the class.
SHARED = lines("""
    {co} said on {day} that its {outcome} in {period}
    {outcome} in {period} at {co}, the {nationality} maker of {product}
    the {unit} [division|unit|segment] of {co} reported that {outcome} in {period}
    in {period}, {outcome} at {city}-based {co}, which sells {product} in {region}
    {co}, which makes {product} in {city}, said {outcome}, and that it will [open|close] one site in {month}
    {boss} of {co} said {outcome} in {period} after [changes in|a review of] the {unit} business
    {nationality} {unit} company {co} published its report for {period}: {outcome}
    according to {co}, {outcome} in {region}, where it [sells|makes|leases] {product}
    {outcome} in the {unit} unit of {co}, [and|while] sales of {product} [{rose}|{fell}] {pct}% in {region}
    excluding [one-off items|currency effects|the {unit} unit], {outcome} in {period} at {co}
    {co} employs {count} people in {city}; its {outcome} in {period}
    the report of {co} for {period} shows that {outcome}
""")
OUTCOMES = {
    "positive": lines("""
        {gain} {rose} to EUR {hi} mn from EUR {lo} mn
        {gain} {rose} by {up}% to EUR {hi} million
        {burden} {fell} to EUR {lo} mn from EUR {hi} mn
        {burden} {fell} by {down}% to EUR {lo} million
        {loss} narrowed to EUR {lo} mn from EUR {hi} mn
        {loss} [shrank|decreased|{fell}] by {down}%
        {gain} came to EUR {hi} mn, compared with EUR {lo} mn a year earlier
        [EBITDA|net profit|pretax profit] swung to EUR {hi} mn from a loss of EUR {lo} mn
    """),
    "negative": lines("""
        {gain} {fell} to EUR {lo} mn from EUR {hi} mn
        {gain} {fell} by {down}% to EUR {lo} million
        {burden} {rose} to EUR {hi} mn from EUR {lo} mn
        {burden} {rose} by {up}% to EUR {hi} million
        {loss} widened to EUR {hi} mn from EUR {lo} mn
        {loss} [deepened|grew|increased] by {up}%
        {gain} came to EUR {lo} mn, compared with EUR {hi} mn a year earlier
        [EBITDA|net profit|pretax profit] swung from EUR {lo} mn to a loss of EUR {hi} mn
    """),
    "neutral": lines("""
        {gain} totalled EUR {hi} mn
        {gain} came to EUR {hi} mn, compared with EUR {hi} mn a year earlier
        {burden} stood at EUR {hi} million
        {gain} was unchanged at EUR {hi} mn
        {burden} remained at the level of a year earlier, EUR {lo} mn
        {loss} was EUR {lo} mn, as in the [report|forecast] from {month}
        {gain} amounted to EUR {lo} mn and {burden} to EUR {hi} mn
        the number of [shares|votes] [{rose} to {more} from {fewer}|{fell} to {fewer} from {more}] thousand
    """),
}

SENTIMENT = {
    "positive": lines("""
        {co} has won [an order|a contract] worth {currency} to [supply|deliver] {product} to a customer in {region}
        {co} raised its full-year [forecast|guidance] after [strong|better than expected] demand for {product}
        the board of {co} proposes [raising|increasing] the dividend to EUR {hi2} per share from EUR {lo2}
        {co} expects [profit|net sales|its result] to improve in {period} as new {product} reach {region}
        {co} returned to profit in {period} after {small} quarters of losses in its {unit} business
        {co} took market share from [competitors|rivals] in {region} thanks to its {product}
        the [restructuring|savings programme] at {co} cut annual costs by {currency}, more than planned
        the cooperation will strengthen the position of {co} in {region} and [lift|improve] its margins
        shares in {co} [closed|traded] {pct}% higher in {city} after its order book [grew|beat forecasts]
        {co} will hire {count} people in {city} to meet the growing demand for {product}
        the new plant in {city} will double the capacity of {co} and make {product} [cheaper|more efficient] to produce
        {co} sold its {unit} unit and booked a [capital gain|profit] of {currency} on the deal
        {co} received [approval|a licence] to sell its {product} in {region}, opening a market of {currency}
        {boss} was pleased with {period}, as [deliveries|sales] of {product} reached a record at {co}
        {co} has repaid {currency} of its debt ahead of schedule, and its equity ratio improved to {pct}%
        customers in {region} have [extended|renewed] their agreements with {co} by {small} years, worth {currency}
        {co} no longer expects a loss for {period}, since prices of {product} have recovered
        the fall in raw material prices supported the [margin|result] of {co} in {period}
        a court in {city} dismissed the claim of {currency} against {co}, so the provision can be released
        {co} ended its lay-offs in {city} early because orders for {product} picked up in {month}
        the bank's credit rating for {co} was [lifted|upgraded] as its debt declined
        analysts had expected {currency}, but the profit of {co} clearly exceeded that in {period}
        {co} gained {count} new customers for its {product} in {region} during {period}
        productivity at the {city} factory of {co} improved by {pct}% with fewer faults in {product}
        demand that was weak in {month} has recovered, and {co} is now running its {city} mill at full capacity
        {co} was chosen as the [main|preferred] supplier of {product} for a {nationality} customer
        despite a decline in the market, {co} kept its margin above {pct}% and beat its own target
        {co} signed a long agreement that secures work for its {count} employees in {city}
    """),
    "negative": lines("""
        {co} has lost [an order|a contract] worth {currency} to supply {product} to a customer in {region}
        {co} cut its full-year [forecast|guidance] after [weak|lower than expected] demand for {product}
        the board of {co} proposes [cutting|lowering] the dividend to EUR {lo2} per share from EUR {hi2}
        {co} expects [profit|net sales|its result] to weaken in {period} as orders for {product} slow in {region}
        {co} made a loss in {period} after {small} quarters of profit in its {unit} business
        {co} gave up market share to [competitors|rivals] in {region} despite its new {product}
        the [restructuring|savings programme] at {co} will cost {currency}, more than planned
        tougher competition will hurt the position of {co} in {region} and [squeeze|burden] its margins
        shares in {co} [closed|traded] {pct}% lower in {city} after its order book [shrank|missed forecasts]
        {co} will lay off {count} people in {city} because of falling demand for {product}
        the plant in {city} stood still for {small} weeks, and {co} could not deliver its {product} on time
        {co} sold its {unit} unit at a loss of {currency}, below the [value|price] in its books
        {co} was refused [approval|a licence] to sell its {product} in {region}, a market of {currency}
        {boss} was disappointed with {period}, as [deliveries|sales] of {product} were delayed at {co}
        {co} had to borrow {currency} to cover its costs, and its equity ratio weakened to {pct}%
        customers in {region} have [cancelled|postponed] their agreements with {co}, worth {currency}
        {co} no longer expects a profit for {period}, since prices of {product} have not recovered
        the rise in raw material prices burdened the [margin|result] of {co} in {period}
        a court in {city} ordered {co} to pay {currency}, and a provision will be booked in {period}
        {co} extended its lay-offs in {city} because orders for {product} did not pick up in {month}
        the bank's credit rating for {co} was [cut|lowered] as its debt grew
        analysts had expected {currency}, but the profit of {co} fell clearly short of that in {period}
        {co} is recalling {count} of its {product} in {region} because of faults found during {period}
        productivity at the {city} factory of {co} weakened by {pct}% with more faults in {product}
        demand that was strong in {month} has faded, and {co} is now running its {city} mill at half capacity
        despite growth in the market, the margin of {co} sank below {pct}% and missed its own target
        {co} ended the agreement that had secured work for its {count} employees in {city}
    """),
    "neutral": lines("""
        {co} has [signed|made] an agreement to supply {product} to a customer in {region} at an undisclosed price
        {co} will publish its [report|profit figures|results] for {period} on {day} at {hour} local time
        the board of {co} proposes that [a dividend of EUR {lo2} per share|no dividend] be paid for {period}
        {co} repeats its [forecast|guidance] that [profit|net sales] will be at the level of the previous year
        {co} makes {product} and employs {count} people in {city} and {count} in {region}
        the {unit} business of {co} accounts for about {pct}% of its net sales in {region}
        the [restructuring|transfer] moves {count} employees of {co} to the {unit} unit in {city} from {month}
        the cooperation between {co} and {co2} covers the design of {product} for customers in {region}
        shares in {co} are listed in {city}, and the number of shares is {count} thousand after the change
        {co} has appointed {person} as head of its {unit} unit from {month}; {person} will leave the post
        the new plant of {co} in {city} will make {product} and start in {month}, as announced before
        {co} will sell its {unit} unit to {co2} for {currency}, and the deal has no effect on its result
        {co} has applied for [approval|a licence] to sell its {product} in {region}; a decision is due in {month}
        {boss} will present the [sales|profit|loss] figures of {co} for {period} to investors in {city}
        {co} has agreed on a credit line of {currency} that replaces a loan which falls due in {month}
        {co2} and {co} have extended their agreement on {product} by {small} years on the same terms
        {co} said it had no comment on [prices|orders|margins] for {product} in {period}
        the general meeting of {co} will be held in {city} on {day}, and the agenda covers [profit|losses] for {period}
        a court in {city} will hear the claim of {currency} between {co} and {co2} in {month}
        {co} starts talks in {city} on the working hours of {count} employees who make {product}
        the holding of {co2} in {co} [rose|fell|changed] to {pct}% of the shares and votes in {month}
        the figures of {co} for {period} have been restated because costs of the {unit} unit are now shown separately
        {co} bought {count} of its own shares in {city} at an average price of EUR {hi2}
        the order for {product} is worth {currency} and is included in the order book of {co} for {period}
        {co} is moving its head office from {city} to {city} in {month}, and {count} people will work there
        {co} and {co2} are forming a joint company in {city} to [market|develop] {product} in {region}
        the subscription price in the share issue of {co} is EUR {lo2}, and the period ends on {day}
        the market for {product} in {region} is worth {currency} a year, {co} [estimates|wrote]
        growth, profit and loss by segment are shown in the table that {co} attached to its report for {period}
        {co} supplies {product} to {count} shops, and the average price [is|was] {currency} per contract
        the {nationality} competition authority is [studying|handling] the plan of {co} to buy the {unit} unit of {co2}
    """),
}

TOPICS = {
    "Analyst Update": lines("""
        {tick}: {broker} [raises price target to ${more} from ${fewer}|cuts price target to ${fewer} from ${more}]
        {broker} [upgrades|downgrades] {co} to [buy|hold|sell|neutral|overweight] [on valuation|after earnings|]
        {co} [started|initiated] at [buy|hold|outperform|underweight] by {broker}
        {broker} keeps [buy|hold|sell] rating on {co}, sees shares at ${price}
        {co} [upgraded|downgraded|cut|raised] at {broker} as {sector} [demand|growth|risk] builds
        {sector} stocks: {broker} names {tick} and {tick2} top picks for {month}
        {broker} on {co}: [estimates|target] [raised|cut], stock now rated [neutral|buy|sell]
        {tick} gets new [street-high|street-low] target of ${price} at {broker}
        {broker} [drops|resumes] coverage of {tick}, [citing|sees] [oil prices|weak demand|strong growth]
        {broker} says [investors should|clients can] [buy|sell] {tick} [ahead of|after] results, lifts estimate
        {broker} [turns|stays] [cautious|positive] on {co}, [margins|growth] [at risk|underrated]
        {co} a [favourite|least favourite] {sector} name at {broker}
    """),
    "Fed | Central Banks": lines("""
        central bank [holds|raises|cuts] [rates|interest rates] by {bp} basis points [as expected|in surprise move|]
        governor {family} says [inflation|the economy] [needs|supports] [higher|lower] rates
        {country} central bank [buys|sells] bonds to [calm|steady] markets
        minutes: policymakers [split|agreed] on [pace of hikes|rate path|balance sheet]
        rate-setter {person}: [no rush|time] to [cut|hike|pause]
        {country}'s central bank governor {family} [warns on|sees risk from] [inflation|bank stress|weak currency]
        [traders|markets|investors] price in {bp} basis points of [hikes|cuts|easing] by {month}
        policy meeting: central bank [signals|hints at] [smaller|bigger] hikes in {month}
        central bank's {family} speaks on [growth|digital money|inflation|financial stability] in {city}
        balance sheet of {country} central bank [shrinks|grows] by ${num} billion in {month}
        {family} says [inflation|growth|jobs market] [still too hot|cooling faster]
        [bigger|smaller] step possible in {month}, [deputy governor|policymaker] {family} says
    """),
    "Company | Product News": lines("""
        {co} [launches|unveils|introduces] new {topicproduct} [in {country}|for {sector} customers|]
        {co} to [open|close] {small} [stores|plants|offices] in {country}
        {co} [recalls|stops selling] {count} units of its {topicproduct}
        {co} and {co2} [team up|partner] on {topicproduct}
        {tick} [wins|signs] contract to supply {topicproduct} to {country} [government|retailer|bank]
        {co} [cuts|adds] {count} jobs at its {city} [plant|office]
        {co} says {topicproduct} [available|delayed] until {month}
        {co} [moves|expands] production of {topicproduct} to {country}
        {co} workers in {city} [strike|return to work] at {topicproduct} factory
        {tick} - {co} [raises|lowers] price of its {topicproduct} to ${price}
        {co} [drops|wins back] {country} [bank|airline|retailer] as customer
        {co} [tests|builds] {topicproduct} with help from {country} [university|government]
    """),
    "Treasuries | Corporate Debt": lines("""
        {small}-year yield [rises|falls|climbs|slips] to {rate}% [after|before] [inflation data|auction|rate decision]
        {co} sells ${num} [million|billion] of {small}-year [notes|bonds]
        {co} prices [bond|senior notes|green bond] offering at {rate}%
        yield curve [inverts|steepens|flattens] as [traders|investors] [sell|buy] short-dated government debt
        {country} [bond|debt] auction draws [weak|strong] demand at {rate}%
        [junk|high-yield|investment-grade] bond spreads [widen|tighten] as {sector} [firms|issuers] refinance
        {co} [misses|makes] coupon payment on ${num} million debt
        {broker} sees [default|refinancing] wave in {sector} debt
        rating agency [cuts|lifts] {co} debt to [junk|investment grade]
        government bonds [rally|slump], {small}-year yield [down|up] {bp} basis points
        {co} [refinances|buys back] ${num} million due in {small} years
        [investors|funds] [pile into|flee] {sector} debt as [rates|prices] [rise|fall]
    """),
    "Dividend": lines("""
        {co} declares [quarterly|monthly|special] dividend of ${cents} per share
        {tick} [raises|cuts|keeps] [payout|dividend] to ${cents}
        {co} goes ex-dividend [on {day}|tomorrow|next week], yield {rate}%
        {co} [suspends|resumes|scraps] its dividend [to save cash|after strong quarter|as debt grows]
        {small} {sector} stocks with [growing|safe|big] dividends and yields above {rate}%
        {tick} declares ${cents}/share distribution, payable {month} {small}
        {co} [boosts|trims] shareholder payout by {pct}% [after earnings|]
        is the {rate}% yield of {tick} safe? dividend [cover|history] looks [thin|solid]
        {co} board approves [interim|final] payout of ${cents}, record date {month} {small}
        {small} years of payout increases: {tick} holders get ${cents} in {month}
        {co} [shares more|keeps] profit with holders, ${cents} due in {month}
        {tick} yield [climbs|falls] to {rate}% after [stock slide|payout cut|rally]
    """),
    "Earnings": lines("""
        {co} Q{q} EPS ${cents} [beats|misses] by ${cents2}, revenue of ${num} million
        {tick} [beats|misses|tops] [estimates|expectations] on [top and bottom line|revenue|profit]
        {co} reports Q{q} results: [revenue|profit|sales] [up|down] {pct}%
        {co} earnings call transcript: Q{q} [results|outlook]
        {co} [raises|cuts|keeps] full-year guidance after [strong|weak] quarter
        {tick} quarterly [profit|loss] [rises|falls|narrows|widens] on {sector} [demand|costs]
        {co} sees Q{q} revenue of ${num} million, [above|below] consensus
        {tick} GAAP EPS of ${cents} [in-line|beats|misses]
        {sector} earnings season: {co} and {co2} report [before the bell|after the close] on {day}
        {co} swings to [profit|loss] in Q{q} as [oil prices|rates|costs] [bite|help]
        {co} [sales|profit] [miss|beat] as {topicproduct} demand [slows|surges]
        {tick} [outlook|margin] [disappoints|surprises], Q{q} [costs|volumes] [rise|fall]
    """),
    "Energy | Oil": lines("""
        oil [rises|falls|gains|slips] {pct}% as [supply|demand|stockpile] [fears|worries] [grow|ease]
        crude [stockpiles|inventories] [rise|fall] by {num} million barrels
        {country} to [raise|cut] oil output by {count} barrels a day
        natural gas [prices|futures] [jump|slump] on [cold|mild] weather [in {country}|]
        {co} [starts|halts] drilling at {country} [field|well]
        [fuel|diesel|gasoline] prices [climb|drop] to ${price} in {country}
        {co} [shuts|restarts] {country} [refinery|pipeline] after [leak|storm|strike]
        oil exporters [agree|fail to agree] on [output|supply] [cuts|increase] for {month}
        {country} [buys|sells] cargoes of [LNG|crude] as [winter|summer] nears
        power prices in {country} [hit record|fall] as [wind|gas|nuclear] supply [drops|returns]
        {co} [finds|pumps] [more|less] in {country} as prices [rise|fall]
        {country} [wind|solar|nuclear] project [wins|loses] backing [from {co}|]
    """),
    "Financials": lines("""
        {co} Bank [adds|loses] ${num} billion of deposits in {month}
        {co} Bank to [cut|add] {count} jobs in [trading|wealth|mortgage] unit
        [lenders|banks] in {country} [pass|fail] stress test
        {co} Insurance sees [higher|lower] claims after storm in {country}
        [mortgage|card|auto] loan [losses|arrears] [rise|fall] at {co} Bank
        {country} banks [tighten|ease] lending as [rates|defaults] [rise|fall]
        asset manager {co} [sees|reports] ${num} billion [inflows|outflows]
        {co} Bank [opens|closes] {small} branches in {country}
        [hedge fund|private equity firm] {co} Capital [raises|returns] ${num} billion [fund|to clients]
        [lender|insurer] {co} sets aside ${num} million for [bad loans|claims]
        {co} [wealth|mortgage|trading] arm [grows|shrinks] as rates [rise|fall]
        {country} [lender|insurer|broker] {co} [wins|loses] customers after [merger|data leak|outage]
    """),
    "Currencies": lines("""
        dollar [rises|falls|firms|eases] against [euro|yen|pound] [after|before] [inflation data|rate decision]
        euro [slips|climbs] to [one-week|two-month|one-year] [low|high] versus dollar
        {country} crown [weakens|strengthens] {rate}% as [oil|politics|central bank] [weighs|helps]
        [yen|pound|franc] [under pressure|steady] as traders [await|digest] [policy meeting|jobs report]
        {country} [devalues|props up] its currency [after|amid] [election|capital flight|debt worries]
        forex: [euro|yen|dollar] [bulls|bears] watch {rate} level
        bitcoin [jumps|slides] {pct}% [below|above] ${count}
        [crypto|coin] exchange {co} [halts|resumes] [token|bitcoin] withdrawals
        dollar index [up|down] {rate}%, [emerging|commodity] currencies [gain|lose]
        {broker} sees [euro|yen|pound] at {rate} against dollar by {month}
        {country} [peso|crown|franc] [hits|off] [record|one-month] [low|high]
        [coin|token] prices [fall|rise] {pct}% as {co} [fails|lists]
    """),
    "General News | Opinion": lines("""
        storm [hits|nears] {country} coast, {count} homes without power
        [wildfire|flood|earthquake] in {country} forces {count} from homes
        opinion: why [remote work|big cities|public schools|air travel] will never be the same
        [train|plane|ferry] with {num} passengers [delayed|stranded] in {city}
        how to [save money|sleep better|find a job|retire early] in {small} steps, by {person}
        {country} [team|singer|film] wins [award|cup|prize] in {city}
        [hospital|school] in {country} [reports|sees] {count} [flu|virus] cases
        police in {city} [investigate|arrest] {small} after [fire|robbery] at {co} store
        podcast: {person} on [life|leadership|climate|failure] and the price of [growth|success]
        column: what [the rich|young workers|voters|parents] get wrong about [money|markets|risk]
        {person}: [five|three] lessons from [a failed deal|the crisis|my first job]
        {country} [mourns|celebrates] [writer|actor|footballer] {person}
    """),
    "Gold | Metals | Materials": lines("""
        gold [rises|falls|slips|gains] {rate}% as dollar [eases|firms]
        [copper|nickel|zinc|aluminium] [prices|futures] [climb|drop] on [supply|demand] [worries|hopes]
        {co} [finds|drills] [gold|lithium|copper] at {country} [mine|project]
        [silver|platinum|palladium] [hits|nears] [one-week|two-month|one-year] [low|high]
        {co} [halts|restarts] {country} [mine|smelter] after [strike|storm|permit ruling]
        bullion [steady|higher|lower] before [rate decision|inflation data]
        [steel|iron ore|cement] [output|demand] in {country} [rises|falls] {pct}%
        {tick} reports {num} grams per tonne [gold|silver] at {country} project
        {country} to [limit|tax] exports of [lithium|nickel|rare earths]
        miner {co} [raises|cuts] [copper|gold] output target
        {co} [raises|cuts] output at {country} [pit|mill|smelter]
        [metals|bullion] [demand|trade] in {country} [slows|grows] as prices [rise|fall]
    """),
    "IPO": lines("""
        {co} files for [IPO|listing|initial public offering] in {city}
        {co} prices IPO at ${price}, [above|below|within] range
        {co} shares [jump|fall|open up] {pct}% in [market debut|first day of trading]
        {co} [delays|cancels|revives] plans to go public [as markets slump|until {month}|]
        {sector} startup {co} [seeks|targets] ${num} billion valuation in public listing
        {co} [confidentially files|hires {broker}] for stock market listing
        {co} to raise ${num} million selling {num} million shares in [offering|debut]
        blank-check firm {co} to take {co2} public [at ${num} billion|]
        IPO [calendar|watch]: {co} and {co2} [set to debut|expected to price] in {month}
        {country} [oil|bank|chip] giant {co} [sets|widens] price range for float
        {co} [makes|plans] debut in {city}, [valued at ${num} million|shares up {pct}%]
        [investors|funds] [line up|lukewarm] for {co} float
    """),
    "Legal | Regulation": lines("""
        {co} [sued|fined ${num} million] over [data|fees|{topicproduct}]
        {country} [regulator|watchdog] [opens|drops] probe into {co}
        judge [rejects|allows] [suit|claim] against {co}
        {co} to pay ${num} million to settle [fraud|patent|antitrust] case
        new {country} rules would [limit|ban] [short selling|crypto ads|bank fees]
        {co} [appeals|wins|loses] court [ruling|fight] over {topicproduct}
        former {co} [trader|CEO|banker] {family} [pleads guilty|charged|cleared] in [insider trading|fraud] case
        antitrust authority [seeks|blocks] [changes to|sale of] {co} [deal|unit]
        {tick} [investor|shareholder] alert: law firm [investigates|files class action against] {co}
        {country} [approves|rejects] licence for {co} {topicproduct}
        {co} [accused|cleared] of [misleading investors|price fixing|spying]
        {country} [tightens|relaxes] [rules|oversight] for {sector} firms
    """),
    "M&A | Investments": lines("""
        {co} to [buy|acquire] {co2} for ${num} [million|billion]
        {co} [in talks|agrees] to sell {sector} unit to {co2}
        {co} [rejects|weighs|accepts] takeover bid [from {co2}|worth ${num} billion]
        {person}'s fund [takes|sells|raises] {rate}% stake in {co}
        {co} and {co2} [complete|call off] merger
        {sector} startup {co} raises ${num} million from [investors|{co2}]
        {co} [invests|plans to invest] ${num} million in {country} {sector} [firm|venture]
        activist {person} [builds|exits] position in {tick}, [urges|opposes] sale
        {tick} [completes|closes] acquisition of {co2}, [its first {sector} firm|deal worth ${num} million]
        private equity [circles|drops bid for] {co}, price near ${price} a share
        {co} [wants|gets] control of {co2} [at ${price} a share|]
        {country} fund [backs|leaves] {co} with ${num} million
    """),
    "Macro": lines("""
        {country} inflation [rises|falls|slows] to {rate}% in {month}
        {country} economy [adds|loses] {count} jobs in {month}
        {country} GDP [grows|shrinks] {rate}% in Q{q}
        retail sales in {country} [up|down] {rate}%, [above|below] [estimates|expectations]
        {country} factory [orders|exports] [rise|fall] {rate}% in {month}
        jobless [claims|rate] [climbs|drops] to {rate} in {country}
        consumer [confidence|sentiment] [improves|weakens] as [fuel|food] prices [ease|rise]
        {broker} economists [see|expect] recession in {country} by {month}
        {country} housing starts [rise|fall] {pct}% as mortgage rates [climb|ease]
        {country} trade [deficit|surplus] [widens|narrows] to ${num} billion
        {country} [wages|rents|exports] [rise|fall] {rate}% from a year ago
        economists [cut|lift] {country} growth [forecast|estimate] as [exports|spending] [slow|recover]
    """),
    "Markets": lines("""
        stocks [rise|fall|mixed] at the open as traders [await|weigh] [earnings|inflation data|rate decision]
        {country} index [closes|ends] {rate}% [higher|lower], {sector} [leads|lags]
        futures [point higher|point lower|flat] [after|before] [jobs report|holiday|earnings]
        market wrap: [shares|stocks] [climb|slump], yields [up|down], oil [steady|lower]
        volatility index [jumps|drops] to {num} as [selling|buying] [spreads|slows]
        {sector} and {sector} shares lead [gains|losses] across {country} exchange
        pre-market: index futures {rate}% [up|down], {tick} [active|in focus]
        {broker}: [bear|bull] market has [further|little room] to run
        global equities [head for|post] [best|worst] week since {month}
        [small caps|growth stocks|blue chips] [outperform|lag] as investors rotate to {sector}
        {country} shares [gain|lose] {rate}% as [oil|banks|dollar] [climb|fall]
        [rally|sell-off] [fades|deepens]: {sector} up, {sector} down
    """),
    "Politics": lines("""
        {country} president {family} [meets|calls|criticises] [opposition|trade] leaders
        {country} parliament [passes|rejects] [budget|tax|climate] bill
        prime minister {family} [resigns|survives vote|wins election]
        {country} [imposes|lifts] sanctions on {country}
        poll: {family} [leads|trails] rival {family} by {small} points in {country}
        senators [back|block] ${num} billion [spending|aid|energy] plan
        {country} and {country} leaders [agree|fail to agree] on [trade|border|climate] deal
        minister {person}: government will [raise|cut] taxes on [banks|fuel|{sector} firms]
        {country} [recalls|expels] ambassador over [spy|trade|border] dispute
        lawmakers [question|summon] {co} CEO on [prices|data|jobs]
        {family} [wins|loses] [party|senate] vote on [rates of tax|bank rules|energy prices]
        {country} [votes|heads to polls] as [inflation|jobs|prices] [worry|divide] voters
    """),
    "Personnel Change": lines("""
        {co} [names|appoints] {person} [CEO|CFO|chairman|chief operating officer]
        {co} CEO {person} to [step down|retire|leave] in {month}
        {co} finance chief {family} [quits|resigns] [after {small} years|to join {co2}]
        {tick} appoints {person} to [its board|board of directors]
        {person} joins {co} as head of {sector} [from {co2}|]
        {co} [ousts|replaces] [chief executive|chairman] {family} after [weak quarter|probe|failed deal]
        {broker} hires {co} banker {person} [to lead|for] {sector} [team|desk]
        {co} [searches for|picks] new boss as {family} departs
        {tick} chairman {person} will not seek re-election, {family} to succeed
        {country} central bank [deputy|economist] {family} [moves to|joins] {co} as adviser
        {person} [out|in] at {co}
        {co} [shakes up|trims] [board|management] after [profit warning|merger|shares slide]
    """),
    "Stock Commentary": lines("""
        {co}: [great company, wrong price|still a buy|too risky for now]
        why I [bought|sold|keep holding] {tick} [after earnings|before the split|]
        {tick} [looks|seems] [cheap|expensive|overvalued] at {num} times earnings
        {co}: [growth|dividend|valuation] story [intact|has cracks], [patience|caution] needed
        is {tick} stock a [buy|sell|bargain] [now|before earnings]?
        {small} [reasons|charts] to [love|avoid|watch] {co} stock
        {tick} vs {tick2}: which {sector} stock is the better [bet|pick]
        {co} [deserves|does not deserve] its [premium|discount], [margins|debt] matter more
        I think {tick} [doubles|halves] by {month}, [market|street] [misses|ignores] the {topicproduct}
        {co}: the [bull|bear] case [on oil|after the deal|for long-term investors]
        {co} [could|will not] [beat|outrun] the market, [shares|valuation] [stretched|attractive]
        [bulls|bears] are wrong on {tick}, [profit|demand|debt] [will surprise|is the problem]
    """),
    "Stock Movement": lines("""
        {tick} [up|down] {pct}% [pre-market|after hours|at the close] [on earnings|after {broker} note|]
        {co} shares [jump|sink|slide|surge] {pct}% [after|on] [results|deal talk|CEO exit|court ruling]
        {co} stock [hits|touches] [52-week|all-time] [high|low] of ${price}
        {tick} [halted|resumes trading] after {pct}% [spike|drop]
        {sector} stocks [tumble|rally]: {tick}, {tick2} [down|up] more than {pct}%
        {co} market value [up ${num} million as shares soar|down ${num} million as shares plunge]
        why {tick} stock is [falling|rising|moving] today
        biggest movers: {tick} {pct}%, {tick2} {pct}% [on {day}|]
        {co} shares [extend|pare] [gains|losses] to ${price} [after|as] [downgrade|upgrade|guidance cut]
        {co} [slips|climbs] {pct}% as [investors|traders] react to [dividend|offering|{topicproduct} launch]
        {co} [under pressure|in demand], last ${price}
        {tick} [leads|trails] {sector} [shares|peers], [down|up] {pct}% [since {day}|]
    """),
}
# In the order of the topic ids, 0 to 19.
TOPIC_NAMES = list(TOPICS)
TOPIC_LEADS = ["BREAKING: ", "JUST IN: ", "Update: ", "Watch: ", "Read: ", "{tick} - ", "{co}: ", "{broker}: "]
TOPIC_TAILS = [
    ", ahead of {event}",
    " after {event}",
    ", [shares|oil|gold|dollar|yields] [higher|lower|steady]",
    " on [takeover talk|profit warning|inflation fears|rate hopes|oil shock]",
    " as investors wait for {event}",
    " - {sector} [in focus|watch]",
    ", {co2} says",
    " while {tick2} [gains|drops] {pct}%",
    ", [says|according to] {broker}",
    " as {country} [votes|slows|borrows more|raises rates]",
]

CHOICE = re.compile(r"\[([^\[\]]*)\]")
SLOT = re.compile(r"\{(\w+)\}")
# Frames with a clause of this kind take no second one.
TAILED = re.compile(r"\b(after|ahead|amid|as|before)\b")


def ticker(company: str) -> str:
    # Six letters, one more than a US exchange gives out.
    return "$" + company[:6].upper()


class Row:
    """One row's facts, and the expansion of a frame with them."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.left: dict[str, list[str]] = {}
        first, second, third = rng.sample(COMPANIES, 3)
        low = rng.uniform(1.5, 240)
        high = low * rng.uniform(1.06, 1.7)
        cheap = rng.uniform(0.1, 9)
        self.facts = {
            "co": first,
            "co2": second,
            "co3": third,
            "tick": ticker(first),
            "tick2": ticker(second),
            "lo": f"{low:.1f}",
            "hi": f"{high:.1f}",
            "up": f"{100 * (high / low - 1):.1f}",
            "down": f"{100 * (1 - low / high):.1f}",
            "fewer": f"{10 * low:,.0f}",
            "more": f"{10 * high:,.0f}",
            "lo2": f"{cheap:.2f}",
            "hi2": f"{cheap * rng.uniform(1.1, 1.6):.2f}",
        }

    def number(self, name: str) -> str | None:
        rng = self.rng
        if name == "n":
            return f"{rng.uniform(1.2, 320):.1f}"
        if name == "pct":
            return str(rng.randint(2, 48))
        if name == "rate":
            return f"{rng.uniform(0.2, 9.5):.1f}"
        if name == "count":
            return f"{rng.randint(2, 480) * 10:,}"
        if name == "small":
            return str(rng.randint(2, 12))
        if name == "num":
            return str(rng.randint(3, 900))
        if name == "price":
            return str(rng.randint(6, 390))
        if name in ("cents", "cents2"):
            return f"{rng.uniform(0.03, 2.9):.2f}"
        if name == "bp":
            return rng.choice(["25", "50", "75", "10"])
        if name == "q":
            return str(rng.randint(1, 4))
        if name == "hour":
            return f"{rng.randint(7, 11)}.{rng.choice(['00', '15', '30'])}"
        return None

    def fill(self, match: re.Match[str]) -> str:
        name = match[1]
        return self.facts.get(name) or self.number(name) or self.draw(name)

    def draw(self, name: str) -> str:
        if not self.left.get(name):
            self.left[name] = self.rng.sample(SLOTS[name], len(SLOTS[name]))
        return self.left[name].pop()

    def expand(self, template: str) -> str:
        while True:
            text = CHOICE.sub(lambda match: self.rng.choice(match[1].split("|")), template)
            text = SLOT.sub(self.fill, text)
            if text == template:
                text = re.sub(r"\s+([,;])", r"\1", " ".join(text.split()))
                return text[0].upper() + text[1:]
            template = text


def sentiment_text(rng: random.Random, label: str, frame: str) -> str:
    row = Row(rng)
    if rng.random() < 0.6:
        row.facts["co"] += " " + rng.choice(SLOTS["form"])
    text = frame.replace("{outcome}", rng.choice(OUTCOMES[label]))
    if rng.random() < REASON_SHARE:
        text = f"{text} {rng.choice(REASONS[label])}"
    if rng.random() < 0.15:
        text = f"{rng.choice(LEADS)} {text}"
    if rng.random() < 0.4:
        text = f"{text} {rng.choice(TAILS)}"
    return row.expand(text) + "."


def topic_text(rng: random.Random, frame: str) -> str:
    row = Row(rng)
    text = frame
    if rng.random() < 0.3:
        text = rng.choice(TOPIC_LEADS) + text
    if rng.random() < 0.75 and not TAILED.search(text):
        text += rng.choice(TOPIC_TAILS)
    text = row.expand(text)
    if rng.random() < 0.2:
        text += " " + rng.choice(SLOTS["tag"])
    if rng.random() < 0.3:
        text += " https://example.com/" + "".join(rng.choices("abcdefghijkmnpqrstuvwxyz23456789", k=6))
    return text


def normalise(text: str) -> str:
    """Lower case without links, digits and punctuation."""
    text = re.sub(r"https?://\S+", " ", text.lower())
    return " ".join(re.sub(r"[\W\d_]+", " ", text).split())


class Distinct:
    """Admits a text only if it is no near-duplicate of one admitted before."""

    def __init__(self) -> None:
        self.seen: list[set[str]] = []

    def admit(self, text: str) -> bool:
        words = set(normalise(text).split())
        if any(len(words & other) >= NEAR_DUPLICATE * len(words | other) for other in self.seen):
            return False
        self.seen.append(words)
        return True


def frames_for(rng: random.Random, frames: list[str], count: int) -> list[str]:
    """`count` frames, each used as often as any other, give or take one."""
    return (rng.sample(frames, len(frames)) * (count // len(frames) + 1))[:count]


def sentiment_rows(rng: random.Random) -> list[tuple[str, str]]:
    distinct, rows = Distinct(), []
    for label, count in SENTIMENT_ROWS.items():
        shared = round(SHARED_SHARE * count)
        for frame in frames_for(rng, SHARED, shared) + frames_for(rng, SENTIMENT[label], count - shared):
            while not distinct.admit(text := sentiment_text(rng, label, frame)):
                pass
            rows.append((text, label))
    rng.shuffle(rows)
    return rows


def topic_rows(rng: random.Random) -> list[tuple[str, str]]:
    distinct, rows = Distinct(), []
    for label, name in enumerate(TOPIC_NAMES):
        for frame in frames_for(rng, TOPICS[name], ROWS_PER_TOPIC):
            while not distinct.admit(text := topic_text(rng, frame)):
                pass
            rows.append((text, str(label)))
    rng.shuffle(rows)
    return rows


def write(path: Path, rows: list[tuple[str, str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("text", "label"))
        writer.writerows(rows)


def main() -> None:
    folder = Path(__file__).resolve().parent
    write(folder / "sentiment.csv", sentiment_rows(random.Random(SEED)))
    write(folder / "topic.csv", topic_rows(random.Random(SEED + 1)))


if __name__ == "__main__":
    main()
