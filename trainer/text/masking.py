"""Masks for what names a person, a machine or a record: for texts that leave the data set, as in reports.

Each mask errs on the side of hiding ("office365" looks like a user id and goes). No pattern tells a name from other
words, but a label with a colon says what follows (`name: Betty Miller  telephone: 4711`). What stands behind one is
hidden up to the next label, the end of the line or a word that is no name, and no further than a name is long. A name
without a label stays: this hides much, and guarantees nothing.
"""

from __future__ import annotations

import re

from trainer.text.cleaning import STOP_WORDS

# Every repetition is bounded or starts at a border of its own alphabet, so no input takes quadratic time.
_ALONE = r"(?<![\w@<-])"  # nothing before that would belong to the same token; "<" spares what is masked already
_HEX = r"[0-9a-fA-F]"
_DATE = r"\d{1,4}[./-]\d{1,2}[./-]\d{1,4}"
_TIME = r"\d{1,2}:\d{2}"
_TOP_DOMAINS = "com|net|org|edu|gov|info|biz|io|local|lan|corp|intern|internal|home|[a-z]{2}"

MASKS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (mask, re.compile(pattern, re.IGNORECASE))
    for mask, pattern in (
        ("<url>", r"\b(?:https?|ftp|file)://[^\s<>\"]+|\bwww\.[^\s<>\"]+"),
        ("<email>", r"(?<![\w.+@-])[\w.+-]{1,64}@\w[\w.-]{0,200}"),
        ("<id>", rf"{_ALONE}{_HEX}{{8}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{12}}(?!\w)"),  # a GUID
        ("<host>", rf"{_ALONE}(?:\d{{1,3}}\.){{3}}\d{{1,3}}(?![\w.])"),
        ("<host>", rf"{_ALONE}(?:{_HEX}{{2}}[:-]){{5}}{_HEX}{{2}}(?!\w)"),  # a MAC address
        ("<host>", rf"{_ALONE}{_HEX}{{1,4}}(?::{_HEX}{{0,4}}){{3,7}}(?![\w:])"),  # IPv6; three groups are a time
        ("<host>", rf"{_ALONE}(?:[a-z0-9][\w-]{{0,62}}\.){{1,8}}(?:{_TOP_DOMAINS})(?![\w-])(?!\.\w)"),
        ("<host>", r"\\\\[\w.$-]{1,100}(?:\\[^\s\\]{1,100}){0,20}"),  # \\server\share
        ("<id>", r"(?<![\w.,<(+/-])#?\d{5,100}(?!\w|[ ()./-]{1,2}\d)"),
        # Seven digits or more with their separators; dates and times look alike and say nothing about a person.
        ("<phone>", rf"(?<![\w+./:#-])(?!{_DATE}|{_TIME})(?:\+|\(\+?)?\d(?:[ ()./-]{{0,2}}\d){{6,14}}(?![\w/:-])"),
        # A name with both a digit and a hyphen or underscore in it: srv-db01, HostName_221.
        ("<host>", rf"{_ALONE}(?=[\w-]{{0,62}}\d)[^\W\d_]\w{{0,62}}[-_][\w-]{{1,62}}(?![\w-])"),
        # Letters and at least two digits: INC0001234, jdoe42.
        ("<id>", rf"{_ALONE}(?=\w{{0,40}}[^\W\d_])(?=\w{{0,40}}?\d\w{{0,40}}?\d)\w{{5,100}}(?!\w)"),
    )
)


def mask_text(text: str) -> str:
    """The text with names behind a label, e-mail and web addresses, phone numbers, hosts and ids replaced by `<name>`,
    `<email>`, `<host>`, ... Not a guarantee: a name within a sentence stays."""
    text = hide_names(text)
    for mask, pattern in MASKS:
        text = pattern.sub(mask, text)
    return text


# ---- names behind the labels of a form

MOST_WORDS = 3  # of a name; five where all are capitalised


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_PARTICLES = _words(
    """
    de del della di da do dos das du van von der den ter la le el al bin y e zu
    """
)  # within a name

_WHOSE = (
    "first|last|full|given|family|middle|maiden|display|sur|fore|user|caller|employee|contact|manager|requester|"
    "requestor|person|login|logon|account|supervisor|trainee|colleague|customer"
)
_PERSON = (
    rf"(?:(?:{_WHOSE})(?:['’]?s)?[ _-]{{0,2}})?names?|users?|user ?ids?|"
    r"(?:user|login|logon)[ _-]?(?:id|identification)|login|logon|callers?|contacts?(?: person)?|"
    r"employees?|(?:line )?manager|supervisor|requesters?|requestors?|"
    r"(?:requested|reported|opened|created|submitted|raised|approved|called|logged|sent) (?:by|for)|requested for|"
    r"on behalf of|from|to|an|cc|von|reporter|assignee|assigned to|approver|attn|contact person|person|"
    r"(?:vor|nach|familien|benutzer|anwender|nutzer|mitarbeiter|kontakt)name|(?:benutzer|anwender|nutzer|mitarbeiter|"
    r"melder|anrufer|antragsteller|bearbeiter|ansprechpartner)(?:in)?|benutzer-?(?:id|kennung)|kontakt(?:person)?|"
    r"vorgesetzte[rn]?|(?:gemeldet|angefordert|erstellt|beantragt|gesendet|angerufen) (?:von|durch|für)|"
    r"nom(?: d['’]utilisateur| de famille| complet)?|pr[ée]nom|utilisat(?:eur|rice)|appelante?|demandeu(?:r|se)|"
    r"employée?|responsable|interlocuteur|(?:demandé|signalé|créé|ouvert)e? par|"
    r"nombre(?: de usuario| completo)?|apellidos?|usuari[oa]|solicitante|contacto|persona de contacto|emplead[oa]|"
    r"gerente|jef[ea]|(?:solicitado|reportado|creado|criado|aberto) por|"
    r"nome(?: d[eo] usuário| utente| completo)?|sobrenome|usuári[oa]|utilizador|contato|funcionári[oa]|colaborador|"
    r"responsável|cognome|utente|chiamante|richiedente|contatto|dipendente|responsabile|referente|"
    r"(?:richiesto|segnalato|creato) da"
)
_THING = (  # whose name, user or manager is no person
    "host|pc|computer|file|folder|job|device|printer|server|system|domain|function|target|machine|laptop|notebook|group|"
    "sch?e?dule|table|column|path|database|db|service|process|application|app|role|team|report|object|variable|class|"
    "method|module|package|project|queue|share|drive|key|field|program|programm|cluster|company|vendor|product|plant|"
    "site|location|city|country|street|print|comp|instance|event|rule|interface|profile|policy|certificate|network|"
    "wifi|ssid|vm|tablespace|transaction|task|password|credential|session|window|windows|configuration|content|template|"
    "document|form|sheet|list|mailbox|distribution|calendar|channel|hostname|technical|engineering_tool|sql|oracle|sap|"
    "erp|boot|download|update|image|brand|model|item|material|equipment|asset|category|test|dns|short|"
    "ordner|datei|rechner|geräte?|drucker|gruppen|firmen|fichier|serveur|machine|archivo|equipo|arquivo|computador"
)
_PHONE = (
    r"(?:(?:contact|office|work|home|cell|mobile|desk|direct|callback)[ _-]?)?(?:tele)?phone(?:[ _-]?(?:no|nr|number))?"
    r"|tel(?:\.|efon|efono|éfono|efone|éphone)?|mobiles?|mobil|mob\.?|handy|cell|cellular[e]?|celular|portable|móvil|"
    r"telemóvel|ext(?:ension)?|durchwahl|rufnummer|telefonnummer|handynummer|contact[ _-]?(?:no|nr|number)|fax|fon"
)
_ADDRESS = (
    r"(?:(?:home|postal|street|shipping|delivery|billing|mailing|office)[ _-])?address|(?:liefer|post)?adresse|"
    r"anschrift|direcci[óo]n|endereço|indirizzo"
)
_MAIL = r"e-?mail(?:[ _-]?(?:id|address|adresse))?|mail(?:[ _-]?id)?|courriel|correo(?: electrónico)?"
_SIGN = r"[ \t]{0,3}[.]?[ \t]{0,2}[:=：][-–]?[ \t]{0,3}[\"'“„«(\[]?"
_SIGNED = re.compile("[:=：]")
_LABEL = re.compile(
    rf"(?:(?<!\S)(?P<thing>{_THING})(?:['’]?s)?[ /_-]{{1,3}}|(?<![\w.@<\\/-]))"
    rf"(?:(?P<person>{_PERSON})|(?P<phone>{_PHONE})|(?P<address>{_ADDRESS})|(?P<mail>{_MAIL})){_SIGN}",
    re.IGNORECASE,
)
_WORD = re.compile(
    r"(?:[^\W\d_]{1,3}\.(?=[ \t])|[^\W\d_]\w{0,40}(?:[.'’-]\w{1,40}){0,4})(?![\w@/(]|[.'’-]\w|[ \t]{0,2}[:=：])"
)
_GAP = re.compile(r"[ \t]?\\[ \t]?|(?P<comma>,)?[ \t]{1,3}")
_LISTS = frozenset({"from", "to", "cc", "an", "von", "names", "users"})  # of which there may be several
_NEXT = re.compile(r"[ \t]?;[ \t]{1,2}")
_NUMBER = re.compile(r"[+(]{0,2}\d(?:[ ().x/-]{0,2}\d){2,19}(?![\d:])")
_PLACE = re.compile(  # a street and its number, in either order, up to the next label
    r"(?=[^\n:=<]{0,60}\b\d{1,5}\b)(?!0x|\d{1,3}[.:-]\w|[\w-]{1,30}[\\/])(?=[^\n:=<]{0,60}[^\W\d_]{3})[^\W_][^\n:=<]{3,80}"
    r"(?=\n|\Z|[ \t]+\S{1,30}[ \t]?[:=])"
)
_SPELLED_MAIL = re.compile(  # betty.miller, betty.miller (at) corp.com
    r"(?P<name>[^\W_][\w+-]{0,40}(?:[._][\w+-]{1,40}){1,4})(?![\w@.])(?P<at>[ \t]?[(\[]at[)\]][ \t]?[\w.-]{1,80})?"
)
_FILE = re.compile(r"\.(?:exe|dll|msg|pst|ost|docx?|xlsx?|pdf|com|net|org|html?|txt|zip)$", re.IGNORECASE)
# What follows such labels in tickets and is no name.
_NO_NAME = STOP_WORDS | _words(
    """
    a an i no non yes n none unknown various multiple several many every each any some one two three other others
    new old current former same different existing following below above here there he she they his her their its
    him them us will would could should must may might did do had were being wants want wanted needs needed says
    said tried trying getting got gets received receives cannot cant couldnt doesnt dont isnt wasnt unable able
    access account accounts active activate added address admin administrator administrators again alert also asking
    assist assistance authentication blocked browser call called calling change changed check checked client code
    company computer confirmed connect connected connection contact corrupt create created customer data database
    default deleted denied department description details device disabled display does domain down download email
    employee enable enabled engineering enter entry error errors expired explorer failed failing fails failure field
    file files found full global group has help hours id inc incorrect information install installed internet
    invalid is issue issues it item job keeps language laptop license list local location locked logged login logon
    lost machine mail mailbox manager message microsoft missing mobile monitor name names network not notification
    null number office only open opened order outlook page password passwords permission phone plant please printer
    problem problems product profile program qa prod production remote remove removed reports request requested
    required requires reset resolution resolve resolved restart role rights running screen security select server
    service session setup shared showing site skype software started still stopped subject summary support system
    systems team test ticket time timeout tool transaction unavailable unlock unlocked update updated urgent use
    user username users using valid version vpn wifi window windows wireless work worked working works wrong fehler
    nicht gesperrt neu neuer fehlt ungültig falsch unbekannt anmeldung passwort kennwort rechner drucker erreur
    bloqué inconnu invalide bloqueado inválido desconocido desconhecido bloccato sconosciuto to from in on at by as
    so than then out up off over under within without via per consider contacting kindly earlier till until since
    emp empid best regards guest dear ok okay thanks thank hello hi see view read write run send let give take make
    set add sign log put keep tell show temporary external internal public private sales finance hr marketing
    purchasing quality operation operations technical standard business regional corporate consultant contractor
    intern trainee vendor supplier
    """
)


def hide_names(text: str) -> str:
    """The text with what follows a person's field as `<name>`, `<phone>`, `<address>` or `<email>`.

    >>> hide_names("name: betty miller  telephone: 4711, user name is locked")
    'name: <name>  telephone: <phone>, user name is locked'
    """
    if not _SIGNED.search(text):
        return text
    parts, last = [], 0
    for label in _LABEL.finditer(text):
        if label["thing"] or label.end() < last:
            continue
        mask, end = _value(text, label)
        if end > label.end():
            parts += [text[last : label.end()], mask]
            last = end
    return "".join([*parts, text[last:]])


def _value(text: str, label: re.Match[str]) -> tuple[str, int]:
    """The mask for what a label is followed by, and where that ends; at the label's end where it is no such thing."""
    start = label.end()
    if label["person"]:
        end = _end_of_name(text, start)
        while label["person"].lower() in _LISTS and end > start and (gap := _NEXT.match(text, end)):
            start, end = gap.end(), max(end, _end_of_name(text, gap.end()))
        return "<name>", end
    if label["phone"]:
        kind, found = "<phone>", _NUMBER.match(text, start)
    elif label["address"]:
        kind, found = "<address>", _PLACE.match(text, start)
    else:
        kind, found = "<email>", _SPELLED_MAIL.match(text, start)
        found = None if found and _FILE.search(found["name"]) and not found["at"] else found
    return kind, found.end() if found else start


def _end_of_name(text: str, start: int) -> int:
    """Where the words of a name that begins at `start` end."""
    end, capital = start, True
    gap: re.Match[str] | None = None
    for count in range(MOST_WORDS + 2):
        while gap and capital and (word := _WORD.match(text, start)) and word.group() in _PARTICLES:
            start = word.end() + 1
        word = _WORD.match(text, start)
        if not word or word.group().lower().rstrip(".") in _NO_NAME:
            break
        capital &= word.group()[0].isupper()
        if not capital and (count >= MOST_WORDS or (gap and gap["comma"])):
            break
        end = word.end()
        gap = _GAP.match(text, end)
        if not gap:
            break
        start = gap.end()
    return end
