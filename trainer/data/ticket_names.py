"""What exports call the columns of tickets: ServiceNow, Jira, Zendesk, GitHub, Bugzilla and others, in the languages
that they write headers in (English, German, French, Spanish, Portuguese, Italian).

Names are compared by their letters and digits alone, in any case (`field_names.name_key`): "Short description" is
shortdescription.
"""

from __future__ import annotations

# In order of preference: the first that a file has is taken; of ALL_OF all that it has.
USUAL_TICKET_NAMES = {
    "number": (
        "number", "issuekey", "key", "ticketnumber", "ticketid", "incidentnumber", "incidentid", "caseid", "bugid",
        "issueid", "requestid", "iid", "id", "#",
        "nummer", "vorgangsschlüssel", "schlüssel", "numéro", "clédeticket", "clé", "número", "clavedeincidencia",
        "clave", "chavedoitem", "chave", "numero", "chiaveticket", "chiave",
    ),
    "text1": (
        "shortdescription", "summary", "subject", "title", "shortdesc", "issuesummary",
        "kurzbeschreibung", "zusammenfassung", "betreff", "titel", "brèvedescription", "descriptionbrève", "résumé",
        "objet", "sujet", "titre", "brevedescripción", "descripciónbreve", "resumen", "asunto", "título",
        "descriçãoresumida", "brevedescrição", "descriçãobreve", "resumo", "assunto", "brevedescrizione",
        "descrizionebreve", "riepilogo", "oggetto", "titolo",
    ),
    "text2": (
        "description", "body", "longdescription", "detaileddescription", "details", "content", "message", "text",
        "descriptiontext", "notes",
        "beschreibung", "nachricht", "descripción", "descrição", "mensagem", "descrizione", "messaggio",
    ),
    "category": (
        "assignmentgroup", "assignedgroup", "supportgroup", "group", "groupname", "components", "component",
        "category", "team", "queue", "department", "tracker", "product", "groupid", "labels", "tags", "project",
        "zuweisungsgruppe", "zugewiesenegruppe", "gruppe", "komponenten", "kategorie", "groupedaffectation",
        "groupedassignation", "groupe", "composants", "catégorie", "grupodeasignación", "grupo", "componentes",
        "categoría", "grupodeatribuição", "categoria", "gruppodiassegnazione", "gruppo", "componenti",
    ),
    "resolution": (
        "closenotes", "resolutionnotes", "resolutiontext", "resolutiondescription", "resolutiondetails",
        "resolutioncomments", "resolutionsummary", "closingnotes", "closurenotes", "solution",
        "lösungshinweise", "lösungsnotizen", "lösungsbeschreibung", "abschlussnotizen", "schließungsnotizen", "lösung",
        "notesderésolution", "notesdeclôture", "notesdefermeture", "notasderesolución", "notasdecierre",
        "notasderesolução", "notasdeencerramento", "notasdefechamento", "notedirisoluzione", "notedichiusura",
    ),
    "notes": (
        "worknotes", "commentsandworknotes", "worklog", "additionalcomments", "comments", "comment", "journal",
        "arbeitsnotizen", "kommentar", "kommentare", "notesdetravail", "commentaire", "commentaires",
        "notasdetrabajo", "comentario", "comentarios", "notasdetrabalho", "comentário", "comentários",
        "notedilavoro", "commento", "commenti",
    ),
    "date": (
        "openedat", "opened", "createdat", "created", "createdon", "createddate", "creationdate", "datecreated",
        "syscreatedon", "opendate", "dateopened", "reportedat", "creationts",
        "geöffnet", "erstellt", "erstelltam", "ouvert", "ouvertle", "créé", "crééle", "création", "abierto", "creado",
        "creada", "aberto", "criado", "criadoem", "aperto", "creato",
    ),
    "duplicate_of": (
        "duplicateof", "duplicatedof", "dupof", "dupeof", "dupid", "duplicateid", "duplicatedtoid", "movedtoid",
        "outwardissuelinkduplicate", "inwardissuelinkduplicate", "mergedinto",
        "mergedintoid", "parentincident", "parentincidentid", "problemid", "problem", "problemnumber",
        "relatedproblem", "knownerror", "knownerrorid",
        "duplikatvon", "übergeordneterincident", "übergeordneterstörfall", "bekannterfehler", "doublonde",
        "incidentparent", "problème", "erreurconnue", "duplicadode", "incidenteprincipal", "incidenteprimario",
        "problema", "errorconocido", "duplicatade", "incidentepai", "erroconhecido", "duplicatodi", "incidentpadre",
        "incidentprincipale", "errorenoto",
    ),
}  # fmt: skip
ALL_OF = ("duplicate_of", "notes")
"""Fields that all columns of a usual name make together, not the first alone."""
